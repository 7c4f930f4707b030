"""Tables of simple, well-known facts: countries, animals, planets, things, recipes."""
# ruff: noqa: E501, SIM905

from __future__ import annotations

COUNTRIES: list[tuple[str, str, str]] = [
    tuple(row.split(":"))  # type: ignore[misc]
    for row in (
        "France:Paris:Europe;Germany:Berlin:Europe;Italy:Rome:Europe;Spain:Madrid:Europe;Portugal:Lisbon:Europe;Austria:Vienna:Europe;Switzerland:Bern:Europe;"
        "Belgium:Brussels:Europe;the Netherlands:Amsterdam:Europe;Denmark:Copenhagen:Europe;Sweden:Stockholm:Europe;Norway:Oslo:Europe;Finland:Helsinki:Europe;"
        "Iceland:Reykjavik:Europe;Ireland:Dublin:Europe;the United Kingdom:London:Europe;Poland:Warsaw:Europe;the Czech Republic:Prague:Europe;Hungary:Budapest:Europe;"
        "Greece:Athens:Europe;Romania:Bucharest:Europe;Bulgaria:Sofia:Europe;Croatia:Zagreb:Europe;Serbia:Belgrade:Europe;Slovenia:Ljubljana:Europe;Slovakia:Bratislava:Europe;"
        "Estonia:Tallinn:Europe;Latvia:Riga:Europe;Lithuania:Vilnius:Europe;Ukraine:Kyiv:Europe;Albania:Tirana:Europe;Malta:Valletta:Europe;Luxembourg:Luxembourg City:Europe;"
        "Japan:Tokyo:Asia;China:Beijing:Asia;India:New Delhi:Asia;Thailand:Bangkok:Asia;Vietnam:Hanoi:Asia;South Korea:Seoul:Asia;Indonesia:Jakarta:Asia;Nepal:Kathmandu:Asia;"
        "Mongolia:Ulaanbaatar:Asia;the Philippines:Manila:Asia;Malaysia:Kuala Lumpur:Asia;Pakistan:Islamabad:Asia;Bangladesh:Dhaka:Asia;Iran:Tehran:Asia;Iraq:Baghdad:Asia;"
        "Jordan:Amman:Asia;Lebanon:Beirut:Asia;Saudi Arabia:Riyadh:Asia;Turkey:Ankara:Asia;Cambodia:Phnom Penh:Asia;Laos:Vientiane:Asia;Bhutan:Thimphu:Asia;"
        "Egypt:Cairo:Africa;Kenya:Nairobi:Africa;Nigeria:Abuja:Africa;Ghana:Accra:Africa;Ethiopia:Addis Ababa:Africa;Morocco:Rabat:Africa;Algeria:Algiers:Africa;Tunisia:Tunis:Africa;"
        "Senegal:Dakar:Africa;Uganda:Kampala:Africa;Rwanda:Kigali:Africa;Angola:Luanda:Africa;Zambia:Lusaka:Africa;Zimbabwe:Harare:Africa;Namibia:Windhoek:Africa;Mali:Bamako:Africa;"
        "Madagascar:Antananarivo:Africa;Libya:Tripoli:Africa;Somalia:Mogadishu:Africa;"
        "Canada:Ottawa:North America;the United States:Washington, D.C.:North America;Mexico:Mexico City:North America;Cuba:Havana:North America;Jamaica:Kingston:North America;"
        "Guatemala:Guatemala City:North America;Panama:Panama City:North America;Costa Rica:San José:North America;"
        "Brazil:Brasília:South America;Argentina:Buenos Aires:South America;Chile:Santiago:South America;Peru:Lima:South America;Colombia:Bogotá:South America;"
        "Ecuador:Quito:South America;Uruguay:Montevideo:South America;Paraguay:Asunción:South America;Venezuela:Caracas:South America;"
        "Australia:Canberra:Oceania;New Zealand:Wellington:Oceania;Fiji:Suva:Oceania"
    ).split(";")
]

# name : class : where it lives : what it eats : what it sounds like or does : one fact
ANIMALS: list[list[str]] = [
    row.split(":")
    for row in (
        "cat:mammal:in houses and gardens:mice and fish:meows:Cats sleep for most of the day and see well in the dark\n"
        "dog:mammal:with people:meat:barks:Dogs have an excellent sense of smell\n"
        "cow:mammal:on farms:grass:moos:A cow has a stomach with four parts\n"
        "horse:mammal:on farms and in meadows:grass and hay:neighs:Horses can sleep standing up\n"
        "sheep:mammal:on farms and in hills:grass:bleats:The wool of sheep is used to make warm clothes\n"
        "pig:mammal:on farms:roots, grain and fruit:grunts:Pigs are clever and clean animals\n"
        "lion:mammal:in the grasslands of Africa:meat:roars:Lions live in groups that are called prides\n"
        "tiger:mammal:in the forests of Asia:meat:growls:Every tiger has its own pattern of stripes\n"
        "elephant:mammal:in Africa and Asia:grass, leaves and bark:trumpets:The elephant is the largest animal on land\n"
        "giraffe:mammal:in the grasslands of Africa:leaves:hums:The giraffe is the tallest animal in the world\n"
        "zebra:mammal:in the grasslands of Africa:grass:barks:No two zebras have the same stripes\n"
        "monkey:mammal:in warm forests:fruit, leaves and insects:chatters:Monkeys use their hands and feet to climb\n"
        "bear:mammal:in forests and mountains:berries, fish and honey:growls:Many bears sleep through the winter\n"
        "polar bear:mammal:on the ice of the Arctic:seals:growls:The skin of a polar bear is black under its white fur\n"
        "fox:mammal:in forests and fields:mice, berries and eggs:barks:Foxes are known to be clever and shy\n"
        "wolf:mammal:in forests and mountains:deer and other animals:howls:Wolves live and hunt in packs\n"
        "rabbit:mammal:in meadows and burrows:grass and carrots:squeaks:The teeth of a rabbit never stop growing\n"
        "mouse:mammal:in houses and fields:seeds and grain:squeaks:A mouse can squeeze through a very small hole\n"
        "squirrel:mammal:in trees:nuts and seeds:chatters:Squirrels hide nuts for the winter\n"
        "hedgehog:mammal:in gardens and hedges:insects and worms:snuffles:A hedgehog rolls into a ball when it is afraid\n"
        "bat:mammal:in caves and attics:insects or fruit:squeaks:Bats are the only mammals that can really fly\n"
        "kangaroo:mammal:in Australia:grass and leaves:clicks:A baby kangaroo grows up in the pouch of its mother\n"
        "koala:mammal:in the trees of Australia:eucalyptus leaves:bellows:A koala sleeps for about twenty hours a day\n"
        "panda:mammal:in the mountains of China:bamboo:bleats:A panda spends most of its day eating\n"
        "camel:mammal:in deserts:grass and thorny plants:groans:The hump of a camel stores fat, not water\n"
        "whale:mammal:in the sea:small sea animals:sings:The blue whale is the largest animal that has ever lived\n"
        "dolphin:mammal:in the sea:fish:clicks and whistles:Dolphins are clever and breathe air\n"
        "seal:mammal:on cold coasts:fish:barks:Seals have a thick layer of fat that keeps them warm\n"
        "deer:mammal:in forests:grass and leaves:bellows:Male deer lose their antlers every year\n"
        "goat:mammal:in mountains and on farms:grass and leaves:bleats:Goats are excellent climbers\n"
        "otter:mammal:in rivers:fish:whistles:Sea otters hold hands when they sleep\n"
        "beaver:mammal:in rivers and lakes:bark and leaves:slaps its tail:Beavers build dams of branches and mud\n"
        "owl:bird:in forests and barns:mice:hoots:An owl can turn its head very far and flies without a sound\n"
        "eagle:bird:in mountains:fish and small animals:screeches:Eagles can see a mouse from far away\n"
        "penguin:bird:on southern coasts:fish:brays:Penguins cannot fly, but they are excellent swimmers\n"
        "parrot:bird:in warm forests:seeds and fruit:talks:Some parrots can repeat human words\n"
        "duck:bird:on ponds and lakes:plants and insects:quacks:The feathers of a duck keep out the water\n"
        "chicken:bird:on farms:grain and worms:clucks:A hen can lay an egg almost every day\n"
        "swan:bird:on lakes:water plants:hisses:Swans often stay with one partner for life\n"
        "crow:bird:in towns and fields:almost everything:caws:Crows can use sticks as tools\n"
        "ostrich:bird:in the grasslands of Africa:plants:booms:The ostrich is the largest bird, and it cannot fly\n"
        "stork:bird:in meadows near water:frogs and insects:clatters:Many storks fly to Africa for the winter\n"
        "frog:amphibian:in ponds:insects:croaks:A frog begins its life as a tadpole\n"
        "snake:reptile:in many warm places:mice and eggs:hisses:Snakes smell with their tongues\n"
        "turtle:reptile:in the sea and on land:plants and jellyfish:is very quiet:A turtle can live for a very long time\n"
        "crocodile:reptile:in warm rivers:fish and other animals:growls:Crocodiles have existed since the time of the dinosaurs\n"
        "lizard:reptile:on warm stones:insects:is very quiet:Some lizards can lose their tail and grow a new one\n"
        "shark:fish:in the sea:fish:makes no sound:Sharks grow new teeth all their life\n"
        "salmon:fish:in rivers and in the sea:small fish and insects:makes no sound:Salmon swim back to the river where they were born\n"
        "goldfish:fish:in ponds and tanks:small plants and insects:makes no sound:A goldfish can remember things for months\n"
        "octopus:mollusc:in the sea:crabs and shells:makes no sound:An octopus has eight arms and three hearts\n"
        "snail:mollusc:in gardens:leaves:makes no sound:A snail carries its house on its back\n"
        "bee:insect:in hives:nectar and pollen:buzzes:Bees make honey and help flowers to become fruit\n"
        "butterfly:insect:in meadows and gardens:nectar:makes no sound:A butterfly begins its life as a caterpillar\n"
        "ant:insect:in nests under the ground:seeds and insects:makes no sound:An ant can carry many times its own weight\n"
        "spider:arachnid:in webs:insects:makes no sound:A spider has eight legs and can spin silk"
    ).split("\n")
]

PLANETS: list[tuple[str, str, str]] = [
    ("Mercury", "first", "It is the smallest planet and the closest one to the sun"),
    ("Venus", "second", "It is the hottest planet, because its thick clouds keep the heat"),
    ("Earth", "third", "It is our home, and the only planet on which we know of life"),
    ("Mars", "fourth", "It is called the red planet, because its soil is full of rust"),
    ("Jupiter", "fifth", "It is the largest planet and has a great red storm"),
    ("Saturn", "sixth", "It is famous for its bright rings of ice and rock"),
    ("Uranus", "seventh", "It lies on its side and looks pale blue"),
    ("Neptune", "eighth", "It is the farthest planet from the sun, dark, cold and windy"),
]

# thing : what it is, as a sentence without the leading "A thing is"
THINGS: dict[str, str] = dict(
    row.split(":", 1)
    for row in (
        "a bicycle:a vehicle with two wheels that you move with your legs. It is quiet, cheap and good for your health\n"
        "a car:a vehicle with four wheels and an engine. It carries a few people from one place to another\n"
        "a train:a row of wagons that runs on rails. It can carry many people over long distances\n"
        "an aeroplane:a machine with wings that carries people through the air. Its engines push it forward, and the wings lift it\n"
        "a ship:a large boat that carries people and goods over the sea\n"
        "a bridge:a building that leads a road or a railway over a river or a valley\n"
        "a clock:a machine that shows the time. The short hand shows the hour and the long hand shows the minutes\n"
        "a calendar:a list of all days, weeks and months of a year\n"
        "a library:a place with many books, where people can read and borrow them\n"
        "a school:a place where children and teachers meet to learn together\n"
        "a hospital:a place where doctors and nurses take care of ill people\n"
        "a museum:a place where interesting old or beautiful things are shown\n"
        "a market:a place where people buy and sell fruit, vegetables and other things\n"
        "a garden:a piece of land where people grow flowers, fruit or vegetables\n"
        "a forest:a large area with many trees. It is the home of many animals and keeps the air clean\n"
        "a river:a long stream of water that flows from the mountains to a lake or to the sea\n"
        "a lake:a large area of water with land all around it\n"
        "an island:a piece of land with water all around it\n"
        "a mountain:a very high piece of land. At the top it is often cold and snowy\n"
        "a volcano:a mountain from which hot melted rock can come out\n"
        "a desert:a very dry place where it hardly ever rains. Only few plants and animals can live there\n"
        "an ocean:a huge area of salt water. Oceans cover most of the earth\n"
        "the sun:a star in the middle of our solar system. It gives us light and warmth\n"
        "the moon:a ball of rock that travels around the earth once in about a month. It shines because the sun lights it\n"
        "a star:a huge ball of hot gas that gives off light. Our sun is a star, too\n"
        "a planet:a large round body that travels around a star. Our sun has eight planets\n"
        "rain:water that falls from the clouds in drops\n"
        "snow:frozen water that falls from the clouds in small white crystals\n"
        "fog:a cloud that lies on the ground. It is made of tiny drops of water\n"
        "wind:moving air. It blows because the air is warm in one place and cold in another\n"
        "a rainbow:an arc of colours in the sky. It appears when the sun shines through drops of rain\n"
        "a thunderstorm:a storm with lightning, thunder and often heavy rain\n"
        "ice:frozen water. Water freezes at zero degrees Celsius\n"
        "water:a clear liquid that all living things need. It freezes at zero and boils at one hundred degrees Celsius\n"
        "air:the mixture of gases around us. We need the oxygen in it to breathe\n"
        "fire:heat and light that appear when something burns\n"
        "gold:a yellow metal that does not rust. It is used for rings and coins\n"
        "iron:a strong grey metal. Steel is made from it\n"
        "wood:the hard part of a tree. People use it to build houses and to make furniture and paper\n"
        "paper:a thin material made from wood. We write on it and make books from it\n"
        "glass:a hard, clear material made from melted sand\n"
        "salt:a white mineral that makes food tasty. It is found in the sea and in the ground\n"
        "sugar:a sweet food that is made from sugar cane or sugar beets\n"
        "honey:a sweet, golden food that bees make from the nectar of flowers\n"
        "bread:a food that is baked from flour, water, yeast and salt\n"
        "cheese:a food that is made from milk\n"
        "chocolate:a sweet food made from cocoa beans, sugar and often milk\n"
        "coffee:a dark drink made from roasted beans. It helps many people to stay awake\n"
        "tea:a drink made by pouring hot water over dried leaves\n"
        "an apple:a round fruit that grows on trees. It can be red, green or yellow\n"
        "a banana:a long yellow fruit that grows in warm countries\n"
        "a lemon:a yellow fruit with very sour juice\n"
        "a tomato:a round red fruit that is eaten like a vegetable\n"
        "a potato:a vegetable that grows under the ground. It can be boiled, baked or fried\n"
        "a carrot:a long orange vegetable that grows under the ground\n"
        "a tree:a tall plant with a trunk, branches and leaves\n"
        "a flower:the part of a plant that makes seeds. Many flowers have bright colours and a sweet smell\n"
        "a seed:a small part of a plant from which a new plant can grow\n"
        "a book:a set of printed pages with a story or with knowledge\n"
        "a newspaper:a set of printed pages that tell what has happened\n"
        "a letter:a written message to somebody, or one sign of the alphabet\n"
        "a telephone:a machine that lets people talk to each other over long distances\n"
        "a computer:a machine that follows instructions and works with numbers, texts and pictures\n"
        "a program:a list of instructions that a computer follows\n"
        "the internet:a worldwide network that connects computers\n"
        "a file:a piece of data with a name that is stored on a disk\n"
        "Python:a programming language that is easy to read. Many people use it for science and for small tools\n"
        "memory:the place where a computer keeps the data it is working with. It is fast, but it forgets everything when the power is off\n"
        "a robot:a machine that can do work by itself, often with arms or wheels\n"
        "electricity:a form of energy that flows through wires. It gives us light and drives machines\n"
        "a battery:a small box that stores electricity\n"
        "a magnet:a piece of metal that pulls iron towards it\n"
        "a camera:a machine that takes pictures\n"
        "a piano:a musical instrument with black and white keys\n"
        "a guitar:a musical instrument, usually with six strings\n"
        "a violin:a small musical instrument with four strings that is played with a bow\n"
        "music:sounds that people put together in a beautiful way\n"
        "a painting:a picture that somebody has made with colours and a brush\n"
        "football:a game in which two teams try to kick a ball into a goal\n"
        "chess:a board game for two players. Each player has sixteen pieces and tries to catch the king of the other\n"
        "a doctor:a person who helps ill people to become healthy again\n"
        "a teacher:a person who helps others to learn\n"
        "a farmer:a person who grows plants or keeps animals for food\n"
        "a baker:a person who bakes bread and cakes\n"
        "a friend:a person whom you like and trust\n"
        "a family:a group of people who belong together, such as parents and children\n"
        "a dinosaur:an animal that lived many millions of years ago. Some dinosaurs were as tall as houses\n"
        "a triangle:a shape with three sides and three corners\n"
        "a square:a shape with four equal sides and four right angles\n"
        "a circle:a round shape. All its points have the same distance from the middle\n"
        "gravity:the force that pulls things towards the earth\n"
        "an umbrella:a roof of cloth on a stick that keeps you dry in the rain\n"
        "a candle:a stick of wax with a string in it that gives light when it burns\n"
        "a lighthouse:a tower on the coast with a bright light that shows ships the way\n"
        "a map:a drawing that shows where places are\n"
        "a compass:a small tool with a needle that points to the north\n"
        "a telescope:a tool that makes distant things look larger. It is used to watch the stars\n"
        "a microscope:a tool that makes very small things visible"
    ).split("\n")
)

OPPOSITES = [
    tuple(pair.split(":"))
    for pair in "hot:cold big:small tall:short old:young old:new fast:slow light:dark heavy:light happy:sad early:late open:closed full:empty high:low long:short rich:poor strong:weak wet:dry hard:soft clean:dirty loud:quiet day:night good:bad easy:difficult true:false near:far left:right up:down first:last wide:narrow thick:thin sweet:sour".split()
]

# dish : ingredients : steps
RECIPES: dict[str, tuple[str, list[str]]] = {
    "pancakes": (
        "flour, milk, eggs and a little salt",
        [
            "Mix the flour, the milk, the eggs and the salt in a bowl.",
            "Heat some butter in a pan.",
            "Pour in a little batter and bake it on both sides until it is golden.",
            "Serve the pancakes with sugar, fruit or honey.",
        ],
    ),
    "tomato soup": (
        "tomatoes, an onion, garlic, broth and a little cream",
        [
            "Chop the onion and the garlic and fry them in oil.",
            "Add the tomatoes and the broth.",
            "Let the soup cook for twenty minutes and blend it.",
            "Add a little cream, salt and pepper.",
        ],
    ),
    "tea": (
        "tea leaves and water",
        [
            "Boil fresh water.",
            "Put the tea leaves into a pot.",
            "Pour the water over the leaves and wait for three minutes.",
            "Pour the tea into a cup.",
        ],
    ),
    "coffee": (
        "ground coffee and hot water",
        [
            "Boil some water and let it cool for a moment.",
            "Put the coffee into a filter.",
            "Pour the water over it slowly.",
            "Enjoy the coffee while it is hot.",
        ],
    ),
    "spaghetti": (
        "spaghetti, tomatoes, garlic and olive oil",
        [
            "Cook the spaghetti in salted water for about nine minutes.",
            "Fry the garlic in olive oil and add the tomatoes.",
            "Let the sauce cook gently.",
            "Mix the spaghetti with the sauce and serve them with cheese.",
        ],
    ),
    "scrambled eggs": (
        "eggs, a little milk, butter and salt",
        [
            "Beat the eggs with a little milk and salt.",
            "Melt the butter in a pan.",
            "Add the eggs and stir them slowly.",
            "Take them off the heat while they are still soft.",
        ],
    ),
    "an omelette": (
        "three eggs, butter, salt and cheese or herbs",
        [
            "Beat the eggs with a little salt.",
            "Melt the butter in a hot pan and pour in the eggs.",
            "Add cheese or herbs when the edge is firm.",
            "Fold the omelette and serve it at once.",
        ],
    ),
    "bread": (
        "flour, water, yeast and salt",
        [
            "Mix the flour, the yeast, the water and the salt.",
            "Knead the dough for ten minutes.",
            "Let it rest until it has doubled in size.",
            "Bake it in a hot oven for about forty minutes.",
        ],
    ),
    "a fruit salad": (
        "apples, bananas, oranges and a little lemon juice",
        [
            "Wash and peel the fruit.",
            "Cut it into small pieces.",
            "Mix it with the lemon juice and a little sugar.",
            "Let the salad rest in a cool place.",
        ],
    ),
    "mashed potatoes": (
        "potatoes, warm milk, butter and salt",
        [
            "Peel the potatoes and boil them until they are soft.",
            "Pour off the water.",
            "Mash the potatoes with warm milk and butter.",
            "Season them with salt and a little nutmeg.",
        ],
    ),
    "rice": (
        "one cup of rice, two cups of water and salt",
        [
            "Wash the rice.",
            "Bring the water to the boil with a little salt.",
            "Add the rice and let it cook gently under a lid for fifteen minutes.",
            "Let it rest for five minutes before you serve it.",
        ],
    ),
    "vegetable soup": (
        "carrots, potatoes, leeks and broth",
        [
            "Wash the vegetables and cut them into small pieces.",
            "Fry them for a few minutes in a pot.",
            "Add the broth and let the soup cook for half an hour.",
            "Season it with salt, pepper and herbs.",
        ],
    ),
    "a cheese sandwich": (
        "two slices of bread, butter, cheese and a tomato",
        [
            "Spread butter on the bread.",
            "Put the cheese and some slices of tomato on it.",
            "Add a little salt and pepper.",
            "Close the sandwich and cut it in half.",
        ],
    ),
    "apple pie": (
        "flour, butter, sugar, apples and cinnamon",
        [
            "Make a dough from flour, butter and a little sugar.",
            "Put it into a baking tin.",
            "Fill it with sliced apples, sugar and cinnamon.",
            "Bake the pie for about forty minutes.",
        ],
    ),
    "hot chocolate": (
        "milk, cocoa and sugar",
        [
            "Warm the milk in a pot.",
            "Stir in the cocoa and the sugar.",
            "Let it get hot, but do not let it boil.",
            "Pour it into a cup and enjoy it.",
        ],
    ),
    "lemonade": (
        "lemons, sugar and cold water",
        [
            "Press the juice out of the lemons.",
            "Stir the sugar into a little warm water.",
            "Mix both with cold water.",
            "Serve the lemonade with ice.",
        ],
    ),
    "a salad": (
        "lettuce, tomatoes, cucumber, oil and vinegar",
        [
            "Wash the lettuce and the vegetables.",
            "Cut the tomatoes and the cucumber.",
            "Mix oil, vinegar, salt and pepper for the dressing.",
            "Pour the dressing over the salad just before you eat.",
        ],
    ),
    "popcorn": (
        "corn, oil and salt",
        [
            "Heat a little oil in a large pot.",
            "Add the corn and close the lid.",
            "Shake the pot until the popping stops.",
            "Add salt or sugar.",
        ],
    ),
}
