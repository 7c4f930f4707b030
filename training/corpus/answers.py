"""Common questions with one fixed small answer."""
# ruff: noqa: E501

from __future__ import annotations

# question patterns | answer patterns
SIMPLE: list[tuple[list[str], list[str]]] = [
    (
        ["How many days [are in|does] a [week|week have]?", "How many days are there in a week?"],
        [
            "A week has seven days: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."
        ],
    ),
    (
        [
            "How many [months|days] are in a year?",
            "How long is a year?",
            "How many days does a year have?",
        ],
        ["A year has twelve months and 365 days. A leap year has 366 days."],
    ),
    (
        [
            "[Name|List] the months[ of the year|].",
            "What are the months?",
            "Which months are there?",
        ],
        [
            "The months are January, February, March, April, May, June, July, August, September, October, November and December."
        ],
    ),
    (
        ["[Name|List] the days of the week.", "What are the days of the week?"],
        [
            "The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."
        ],
    ),
    (
        [
            "How many hours [are in|has] a day?",
            "How many minutes are in an hour?",
            "How many seconds are in a minute?",
        ],
        ["A day has 24 hours, an hour has 60 minutes and a minute has 60 seconds."],
    ),
    (
        [
            "[Name|List|What are] the [four |]seasons[.|?]",
            "Which seasons are there?",
            "How many seasons are there?",
        ],
        ["There are four seasons: spring, summer, autumn and winter."],
    ),
    (
        [
            "What happens in spring?",
            "Tell me about spring.",
            "Describe [the |]spring.",
            "What is spring?",
        ],
        [
            "In spring the days grow longer and warmer. [Flowers bloom, birds build their nests|The trees get new leaves, and birds sing], and many animals have their young."
        ],
    ),
    (
        [
            "What happens in summer?",
            "Tell me about [the |]summer.",
            "Describe [the |]summer.",
            "What is summer?",
        ],
        [
            "Summer is the warmest season. The days are long, [people swim in lakes and eat ice cream|fruit ripens and many people go on holiday]."
        ],
    ),
    (
        [
            "What happens in autumn?",
            "Tell me about autumn.",
            "Describe autumn.",
            "What is [autumn|fall]?",
            "Why do leaves fall[ in autumn|]?",
        ],
        [
            "In autumn the days grow shorter and cooler. The leaves turn [red, yellow and brown|yellow and red] and fall from the trees, and farmers bring in the harvest."
        ],
    ),
    (
        [
            "What happens in winter?",
            "Tell me about winter.",
            "Describe [the |]winter.",
            "What is winter?",
        ],
        [
            "Winter is the coldest season. The days are short, [it may snow, and lakes can freeze|many trees are bare, and some animals sleep until spring]."
        ],
    ),
    (
        ["Why is the sky blue?", "What colour is the sky?", "What makes the sky blue?"],
        [
            "The sky looks blue because the air scatters blue light from the sun more than red light."
        ],
    ),
    (
        ["Why is grass green?", "What colour is grass?", "Why are leaves green?"],
        [
            "Grass and leaves are green because of chlorophyll, which plants use to catch the light of the sun."
        ],
    ),
    (
        [
            "What are the primary colours?",
            "Which colours are primary?",
            "Name the primary colours.",
        ],
        [
            "In painting, the primary colours are red, yellow and blue. All other colours can be mixed from them."
        ],
    ),
    (
        [
            "[What colour|What] do you get when you mix blue and yellow?",
            "Mix blue and yellow.",
            "How do I [mix|make] green?",
        ],
        ["Blue and yellow make green."],
    ),
    (
        [
            "[What colour|What] do you get when you mix red and yellow?",
            "Mix red and yellow.",
            "How do I [mix|make] orange?",
        ],
        ["Red and yellow make orange."],
    ),
    (
        [
            "[What colour|What] do you get when you mix red and blue?",
            "Mix red and blue.",
            "How do I [mix|make] [purple|violet]?",
        ],
        ["Red and blue make purple."],
    ),
    (
        [
            "[What colour|What] do you get when you mix black and white?",
            "How do I [mix|make] grey?",
        ],
        ["Black and white make grey."],
    ),
    (
        [
            "What are the colours of the rainbow?",
            "Which colours does a rainbow have?",
            "Name the colours of the rainbow.",
            "How many colours does a rainbow have?",
        ],
        ["The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet."],
    ),
    (["What colour is [a banana|the sun|a lemon]?"], ["It is yellow."]),
    (["What colour is [snow|milk|a polar bear]?"], ["It is white."]),
    (["What colour is [a tomato|blood|a strawberry|a fire engine]?"], ["It is red."]),
    (
        [
            "[Name|List|What are] the [eight |]planets[.|?]",
            "Which planets are there?",
            "How many planets are there?",
            "How many planets does our sun have?",
        ],
        [
            "Our sun has eight planets: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."
        ],
    ),
    (
        ["[What|Which] is the largest planet?", "Which planet is the biggest?"],
        ["Jupiter is the largest planet of our solar system."],
    ),
    (
        ["[What|Which] is the smallest planet?", "Which planet is closest to the sun?"],
        ["Mercury is the smallest planet and the closest one to the sun."],
    ),
    (
        ["Which planet is the hottest?", "What is the hottest planet?"],
        ["Venus is the hottest planet, because its thick clouds keep the heat."],
    ),
    (
        ["Which planet has rings?", "Which planet is famous for its rings?"],
        ["Saturn is famous for its rings. They are made of ice and rock."],
    ),
    (
        ["Which planet is red?", "What is the red planet?"],
        ["Mars is called the red planet, because its soil is full of rust."],
    ),
    (
        ["How many continents are there?", "[Name|List|What are] the continents[.|?]"],
        [
            "There are seven continents: Africa, Antarctica, Asia, Australia, Europe, North America and South America."
        ],
    ),
    (
        ["How many oceans are there?", "[Name|List|What are] the oceans[.|?]"],
        [
            "There are five oceans: the Pacific, the Atlantic, the Indian, the Southern and the Arctic Ocean."
        ],
    ),
    (
        ["What is the largest ocean?", "Which ocean is the biggest?"],
        ["The Pacific Ocean is the largest ocean."],
    ),
    (
        [
            "What is the highest mountain[ in the world| on earth|]?",
            "Which mountain is the highest?",
        ],
        ["Mount Everest is the highest mountain. It is about 8,849 metres high."],
    ),
    (
        ["What is the longest river[ in the world|]?", "Which river is the longest?"],
        ["The Nile and the Amazon are the longest rivers on earth."],
    ),
    (
        ["What is the largest animal[ in the world| on earth|]?", "Which animal is the biggest?"],
        ["The blue whale is the largest animal that has ever lived."],
    ),
    (
        ["What is the fastest animal[ on land|]?", "Which animal is the fastest?"],
        ["The cheetah is the fastest animal on land. It can run about 100 kilometres per hour."],
    ),
    (
        ["What is the tallest animal[ in the world|]?", "Which animal is the tallest?"],
        ["The giraffe is the tallest animal in the world."],
    ),
    (["How many legs does a spider have?"], ["A spider has eight legs."]),
    (
        [
            "How many legs does an insect have?",
            "How many legs does [an ant|a bee|a butterfly] have?",
        ],
        ["It has six legs, like all insects."],
    ),
    (["How many legs does a [dog|cat|horse|cow|lion] have?"], ["It has four legs."]),
    (
        ["At what temperature does water boil?", "When does water boil?"],
        ["Water boils at 100 degrees Celsius[, which is 212 degrees Fahrenheit|]."],
    ),
    (
        ["At what temperature does water freeze?", "When does water freeze?"],
        ["Water freezes at 0 degrees Celsius[, which is 32 degrees Fahrenheit|]."],
    ),
    (
        ["Why do we have day and night?", "Why is it dark at night?", "Why does the sun set?"],
        [
            "The earth turns around itself once in 24 hours. It is day on the side that faces the sun, and night on the other side."
        ],
    ),
    (
        ["Why do we have seasons?", "What causes the seasons?"],
        [
            "We have seasons because the axis of the earth is tilted. The half that leans towards the sun has summer."
        ],
    ),
    (
        [
            "Why does it rain?",
            "Where does rain come from?",
            "How is rain made?",
            "How does a cloud form?",
        ],
        [
            "The sun warms the water of seas and lakes, and it rises as vapour. High up it cools and forms clouds. When the drops become heavy, they fall as rain."
        ],
    ),
    (
        ["Why is the sea salty?", "Why is sea water salty?"],
        [
            "Rivers carry a little salt from the rocks into the sea. The water leaves by evaporating, but the salt stays."
        ],
    ),
    (
        [
            "How do plants grow?",
            "What do plants need[ to grow|]?",
            "How does a seed become a plant?",
        ],
        [
            "Plants need light, water, air and soil. A seed first grows a root, and then a stem with leaves that catch the light."
        ],
    ),
    (
        ["How do birds fly?", "Why can birds fly?"],
        [
            "Birds have wings, light bones and strong muscles. When they flap their wings, the air lifts them."
        ],
    ),
    (
        ["How do fish breathe?", "Can fish breathe under water?"],
        ["Fish breathe with gills, which take the oxygen out of the water."],
    ),
    (
        ["How do bees make honey?", "Where does honey come from?"],
        [
            "Bees collect nectar from flowers and bring it to the hive. There they dry it until it becomes honey."
        ],
    ),
    (
        ["Why do we sleep?", "Why is sleep important?"],
        ["Sleep gives the body a rest and helps the brain to sort what we have learned."],
    ),
    (
        [
            "How many letters does the alphabet have?",
            "How many letters are there in the English alphabet?",
            "[Say|Write|List] the alphabet.",
        ],
        [
            "The English alphabet has 26 letters: A B C D E F G H I J K L M N O P Q R S T U V W X Y Z."
        ],
    ),
    (
        [
            "How many [centimetres|centimeters] are in a [metre|meter]?",
            "How long is a [metre|meter]?",
        ],
        ["One metre has 100 centimetres."],
    ),
    (
        ["How many metres are in a kilometre?", "How long is a kilometre?"],
        ["One kilometre has 1000 metres."],
    ),
    (
        ["How many grams are in a kilogram?", "How heavy is a kilogram?"],
        ["One kilogram has 1000 grams."],
    ),
    (["How many sides does a triangle have?"], ["A triangle has three sides."]),
    (["How many sides does a [square|rectangle] have?"], ["It has four sides."]),
    (
        [
            "What is a haiku?",
            "Write a haiku[.|, please.]",
            "Write a [short |]poem[.|, please.| about nature.]",
            "Can you write a poem?",
        ],
        [
            "[Here is a small poem:|]\n\nThe [river|evening|garden] is [quiet|still],\na [bird|bee|leaf] [passes|goes by|drifts past] in the [wind|light] -\n[the day breathes again|soon the moon will rise|and then it is gone].",
            "[Here are a few lines:|]\n\nThe wind is soft, the night is [deep|near],\nthe [stars|hills|trees] are [bright|calm] and [very |]clear,\nthe moon looks down on [field|lake] and [hill|town],\nand silver light comes floating down.",
        ],
    ),
]
