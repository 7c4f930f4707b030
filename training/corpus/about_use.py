"""How flashmoe is used, and small questions about language models in general."""
# ruff: noqa: E501

from __future__ import annotations

# thought, questions, answers
USES: list[tuple[str, list[str], list[str]]] = [
    (
        "The user asks about installing flashmoe.",
        [
            "How do I install flashmoe?",
            "How can I install [it|flashmoe]?",
            "How do I get flashmoe?",
            "How do I start?",
            "How do I use flashmoe?",
            "What is the first command?",
            "How do I run the demo?",
        ],
        [
            "Install it with pip install flashmoe and then run flashmoe demo. [That starts me, the demo model.|You need nothing but Python.]",
            "Type pip install flashmoe in a terminal. After that, flashmoe demo talks to me, and flashmoe chat opens a chat with a model of your choice.",
            "You only need Python. Run pip install flashmoe, then flashmoe demo to see it work, and flashmoe doctor to learn what fits on your machine.",
        ],
    ),
    (
        "The user asks about the commands.",
        [
            "Which commands [are there|does flashmoe have]?",
            "What commands can I use?",
            "List the commands of flashmoe.",
            "What does flashmoe [doctor|info|convert|verify] do?",
            "How do I chat with a large model?",
            "What can the command line do?",
        ],
        [
            "The commands are demo, generate, chat, info, convert, verify and doctor. The demo command runs me, chat opens a conversation, and doctor looks at your machine and tells you what fits.",
            "flashmoe info shows the shape of a model, flashmoe convert packs it, flashmoe verify checks it, and flashmoe doctor examines your machine. With flashmoe chat you can talk to a model.",
        ],
    ),
    (
        "The user asks how to use the Python interface.",
        [
            "How do I use flashmoe [from|in] Python?",
            "Show me [some|a little] Python code[ for flashmoe|].",
            "How do I load a model?",
            "How do I open a model in Python?",
            "Can I use flashmoe in my own program?",
            "Give me a code example.",
        ],
        [
            'Here is a short example:\n\nimport flashmoe\n\nmodel = flashmoe.Model("path/to/model", memory="6GB")\ngenerator = flashmoe.Generator(model)\nprint(generator.generate("Hello").text)',
            'It takes three lines:\n\nimport flashmoe\n\nmodel = flashmoe.Model("path/to/model", memory="4GB")\nprint(flashmoe.Generator(model).generate("Once upon a time").text)\n\nThe path may be a folder or the name of a model on the hub.',
        ],
    ),
    (
        "The user asks which models work.",
        [
            "Which models [does flashmoe support|can flashmoe run|work with flashmoe|can I run]?",
            "Can flashmoe run Qwen[ models|]?",
            "What models are supported?",
            "Does it run every model?",
            "Which model families are there?",
        ],
        [
            "flashmoe runs mixture-of-experts models of the Qwen3, Qwen3-Next and Qwen3.5 families. It opens the usual safetensors folders and MLX folders as they are.",
            "It can open Qwen3, Qwen3-Next and Qwen3.5 mixture-of-experts checkpoints. A model of an unknown family is refused with a clear message instead of a wrong answer.",
        ],
    ),
    (
        "The user asks how I was trained.",
        [
            "How were you trained?",
            "Who trained you?",
            "Who made you?",
            "What [data|text] were you trained on?",
            "Where does your knowledge come from?",
            "Who wrote your training data?",
            "When were you trained?",
            "Did you read the internet?",
        ],
        [
            "I was trained by a script in the flashmoe repository, on text that another script writes by itself. I have never read the internet, so I know only [simple|a few simple] things.",
            "The flashmoe project made me. A program wrote my training text: small conversations, facts, stories and tool calls. [You can run the same script and train me again.|The script is part of the project.]",
        ],
    ),
    (
        "The user asks about licence or price.",
        [
            "Is flashmoe free?",
            "What does flashmoe cost?",
            "What is the license[ of flashmoe|]?",
            "Which licence does it have?",
            "Is it open source?",
            "Can I use it at work?",
        ],
        [
            "Yes, flashmoe is free software under the Apache 2.0 licence, and so am I. You may use it, change it and share it.",
            "flashmoe is open source under the Apache License, version 2.0. [You may use it at work and at home.|The demo model has the same licence.]",
        ],
    ),
    (
        "The user asks about privacy.",
        [
            "Do you send my data anywhere?",
            "Do you need the internet?",
            "Is my data private?",
            "Can you work offline?",
            "Do you remember me?",
            "Do you learn from me?",
            "Are you online?",
            "Can you read my files?",
        ],
        [
            "I run on your own machine and need no internet. Nothing that you write leaves your computer[, and I forget everything when the chat ends|].",
            "No, I work offline. I see only the text of this chat, and when it is over I remember nothing.",
        ],
    ),
    (
        "The user asks about the same answers.",
        [
            "Do the answers change with the memory budget?",
            "Is the output always the same?",
            "Are the answers exact?",
            "Does a smaller budget make the answers worse?",
            "Does streaming change the quality?",
        ],
        [
            "No. The text is the same for every memory budget, because the same weights are used each time. [A smaller budget is only slower.|Only the speed changes.]",
            "With the same seed you get the same tokens, whatever the memory budget is. flashmoe never skips an expert to save time unless you ask for it.",
        ],
    ),
    (
        "The user asks about tokens.",
        [
            "What is a token?",
            "What are tokens?",
            "What does a tokenizer do?",
            "How does a language model write text?",
            "What is a language model?",
            "How do language models work?",
            "what is an llm",
        ],
        [
            "A token is a small piece of text, such as a word, a part of a word or a punctuation mark. A language model reads tokens and predicts the next one, again and again.",
            "A language model predicts the next piece of text from everything before it. It writes one token after another until the answer is complete.",
            "A tokenizer cuts text into tokens and turns them into numbers. The model works with the numbers, and at the end they are turned back into text.",
        ],
    ),
    (
        "The user asks about prefill and decode.",
        [
            "What is prefill?",
            "What is decoding?",
            "What is the difference between prefill and decode?",
            "What does prefill mean?",
            "Why is reading the prompt faster than writing?",
        ],
        [
            "Prefill is reading the prompt: many tokens go through the model at once. Decode is writing the answer, one token at a time. Prefill is faster per token, because one read of an expert serves many tokens.",
            "During prefill the model reads your whole question in large steps. During decode it writes the answer token by token, and each token waits for the one before it.",
        ],
    ),
    (
        "The user asks about tools.",
        [
            "What is a tool call?",
            "How do tools work?",
            "Can you use tools?",
            "Can you call functions?",
            "What is function calling?",
            "How do I give you a tool?",
            "Which tools do you have?",
        ],
        [
            "A tool is a function that you describe to me with a name and its parameters. When I need it, I write a tool call in JSON, your program runs it, and I read the result and answer.",
            "Yes, I can call tools. You pass a list of tools, I answer with a tool call in JSON, your program sends back the result, and I put it into words.",
        ],
    ),
    (
        "The user asks about temperature.",
        [
            "What is [the |]temperature[ in sampling|]?",
            "What does temperature do?",
            "What is sampling?",
            "What is greedy decoding?",
            "What is top-p?",
            "Why do you give different answers?",
        ],
        [
            "Temperature decides how daring the model is. With temperature zero it always takes the most likely token; with a higher temperature it chooses more freely, so the text varies.",
            "A model gives every possible next token a probability. Greedy decoding takes the best one, and sampling draws one at random. Temperature and top-p decide how random the choice is.",
        ],
    ),
    (
        "The user asks about the conversion.",
        [
            "How do I convert a model?",
            "What does convert do?",
            "Do I have to convert my model?",
            "Can I make a model smaller?",
            "What is a packed model?",
        ],
        [
            "Run flashmoe convert SRC DST --bits 4. It writes each expert as one aligned record, so that it can be read in one go. You can stop it at any time and continue later. You do not have to convert: most folders open as they are.",
            "You need not convert a model, but a packed one reads faster. flashmoe convert keeps the source untouched and checks every record with a checksum.",
        ],
    ),
    (
        "The user asks about my limits.",
        [
            "Are you smart?",
            "Are you intelligent?",
            "How smart are you?",
            "Can you make mistakes?",
            "Can I trust you?",
            "Are you always right?",
            "What can't you do?",
            "What are your limits?",
            "Can you write code?",
            "Can you think?",
        ],
        [
            "I am only a demo with 18 million parameters, so I know little and I make mistakes. For real questions, open a larger model with flashmoe.",
            "Not very! I can talk about simple things, but please check what I say. A large model is much better, and flashmoe can run one for you.",
            "I am a tiny model and I often get hard questions wrong. I am here to show that flashmoe works[ on your machine|].",
        ],
    ),
    (
        "The user asks about a GPU.",
        [
            "Do I need a [GPU|graphics card]?",
            "Does flashmoe [need|use] a [GPU|graphics card]?",
            "Can it run without a GPU?",
            "Does it run on the CPU?",
            "What hardware do I need?",
            "Which computer do I need?",
        ],
        [
            "No, you do not need a graphics card. flashmoe computes on the CPU, and all you need is Python, some memory and a disk.",
            "flashmoe runs on an ordinary computer: a processor, a few gigabytes of memory and an SSD are enough. [A faster disk makes it faster.|Run flashmoe doctor to see what fits.]",
        ],
    ),
    (
        "The user asks about the cache of experts.",
        [
            "What is an expert slot?",
            "What is the hit rate?",
            "What does expert hit rate mean?",
            "How does the expert cache work?",
            "Which experts stay in memory?",
            "What is a cache?",
        ],
        [
            "An expert slot is a place in memory for one expert. When the router picks an expert that is already in a slot, that is a hit, and nothing has to be read. The hit rate tells how often that happens.",
            "The cache holds the experts that were used lately. If an expert is needed again, it is already there. The larger the memory budget, the more experts fit, and the higher the hit rate.",
        ],
    ),
    (
        "The user asks about perplexity.",
        [
            "What is perplexity?",
            "What does perplexity mean?",
            "How do you measure a language model?",
            "How good is a language model?",
        ],
        [
            "Perplexity tells how surprised a model is by a text. A perplexity of ten means that the model hesitates between about ten tokens at each step. Lower is better.",
            "It is a number that shows how well a model predicts a text it has never seen. The lower the perplexity, the better the prediction.",
        ],
    ),
    (
        "The user asks about neural networks.",
        [
            "What is a neural network?",
            "What is [AI|artificial intelligence]?",
            "What is machine learning?",
            "How does a neural network [work|learn]?",
            "What is deep learning?",
        ],
        [
            "A neural network is a program with many numbers, called weights, that are arranged in layers. It learns by changing the weights a little after each example, until its answers fit.",
            "Machine learning means that a program learns from examples instead of fixed rules. A neural network does this by adjusting its weights step by step.",
        ],
    ),
    (
        "The user asks about parameters.",
        [
            "What is a parameter?",
            "What are parameters[ of a model|]?",
            "What is a weight?",
            "What are weights?",
            "What is a checkpoint?",
        ],
        [
            "A parameter, or weight, is one of the numbers that a model has learned. I have about 18 million of them, and large models have hundreds of billions.",
            "The weights are the numbers inside a model. They are stored in a checkpoint, which is a folder with the weights, the configuration and the tokenizer.",
        ],
    ),
    (
        "The user asks about the context.",
        [
            "What is [a|the] context[ window| length|]?",
            "How long can a text be?",
            "How much text can you remember?",
            "How long can our chat be?",
        ],
        [
            "The context is all the text that a model can see at once: the question, the answers and everything before. Mine holds 4096 tokens, but I work best with short chats.",
            "It is the text that I can look back at. When a chat grows longer than the context, it has to be shortened or started again.",
        ],
    ),
    (
        "The user asks about embeddings.",
        [
            "What is an embedding?",
            "What are embeddings?",
            "How does a model understand words?",
            "What is a hidden state?",
            "What is a layer?",
        ],
        [
            "An embedding is a row of numbers that stands for a token. Similar words get similar numbers. In me, each token becomes a row of 256 numbers.",
            "A model turns each token into a row of numbers, the hidden state. Every layer changes it a little, and after the last layer it tells which token comes next.",
        ],
    ),
    (
        "The user asks about JSON.",
        [
            "What is JSON?",
            "What does JSON look like?",
            "Show me an example of JSON.",
            "What is valid JSON?",
        ],
        [
            'JSON is a simple way to write data as text. For example: {"city": "Paris", "days": 2}. I use it to call tools.'
        ],
    ),
    (
        "The user asks why the demo model exists.",
        [
            "Why do you exist?",
            "Why is there a demo model?",
            "What are you for?",
            "What is your purpose?",
            "What is the demo model for?",
            "Why are you so small?",
        ],
        [
            "I exist so that you can see flashmoe work right after the installation, without a download. I am built like the large models, only much smaller.",
            "I am here to show that everything works: the tokenizer, the router, the experts and the chat. For real work, open a large model.",
        ],
    ),
    (
        "The user asks about checksums.",
        [
            "What is a checksum?",
            "What if a file is broken?",
            "What happens when my disk is full?",
            "Is my model file safe?",
            "How does flashmoe find errors?",
        ],
        [
            "A checksum is a short number that is computed from data. flashmoe stores one for every expert and every file, so it notices when something is broken. Run flashmoe verify to check a whole model.",
            "flashmoe checks files before it uses them and says clearly what is wrong. The source model is never changed.",
        ],
    ),
    (
        "The user compares streaming with loading everything.",
        [
            "Why not load the whole model?",
            "What is the difference between streaming and loading?",
            "What if the model fits into memory?",
            "Is streaming slower than memory?",
        ],
        [
            "Loading the whole model needs as much memory as the model is large. Streaming needs much less, because only a few experts are used for each token. If everything fits, flashmoe simply keeps it in memory.",
            "Memory is faster than a disk, so a model that fits completely is faster. Streaming makes models possible that would not fit at all.",
        ],
    ),
]
