"""Word lists of the paraphrase generator: frames, synonyms, fillers, foreign subjects, context prompts.

In the frames ``_`` stands for the topic, the thing to do, or the event; in FOREIGN also ``#`` for a number
and ``~`` for a place; in SCHEMAS ``<N>`` and ``<M>`` for invented names, ``<x>`` for a noun, ``<v>`` for a
place, ``<d>`` for a number and ``<y>`` for a year.
"""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def lines(text: str) -> tuple[str, ...]:
    """The parts of a text between semicolons and line ends."""
    return tuple(part.strip() for part in text.replace("\n", ";").split(";") if part.strip())


TOPIC = lines("""
what is _; what's _; tell me about _; explain _; can you explain _; describe _; _; what about _;
tell me what _ is; how does _ work; define _; what is meant by _; what does _ mean;
what do you know about _; what is _ exactly; information about _; i want to know what _ is;
could you tell me what _ is; _, what is that; give me a short explanation of _; i do not understand _;
i have a question about _; what can you say about _; what is _ in slurmgate; please explain _ to me;
can you tell me about _; do you know what _ is; what exactly is _; explain to me what _ is;
in short, what is _; what is _ for; what is the meaning of _; i would like to know more about _
""")
PLURAL = lines("""
what are _; tell me about _; explain _; can you explain _; describe _; _; what about _; tell me what _ are;
how do _ work; what is meant by _; what do you know about _; information about _;
could you tell me what _ are; i have a question about _; what can you say about _; what are _ in slurmgate;
please explain _ to me; list _; can you tell me about _; do you know what _ are; give me _; show me _;
what exactly are _; explain what _ are
""")
DO = lines("""
how do i _; how can i _; how to _; how do you _; how do we _; how can we _; how does one _; how would i _;
how could i _; how should i _; what is the way to _; what is the best way to _; i want to _; i need to _;
i would like to _; i'd like to _; what do i have to do to _; what must i do to _; show me how to _;
tell me how to _; explain how to _; can i _; is it possible to _; can you explain how to _;
can you show me how to _; what command do i use to _; which command do i use to _; help me _; _;
where do i _; where can i _; what are the steps to _; is there a way to _; what do i need to _;
i don't know how to _; how can a user _; could you tell me how to _; i am trying to _;
how is it possible to _; what should i do to _; we want to _; i have to _, how; what do i type to _;
can you help me _; please help me to _; teach me to _; am i able to _
""")
EVENT = lines("""
what happens when _; what happens if _; what if _; what does slurmgate do when _;
what does slurmgate do if _; _, what happens; _, what now; and if _; what happens to my model when _;
how does slurmgate react when _; how does slurmgate react if _; what will happen when _;
what will happen if _; tell me what happens when _; explain what happens if _; suppose _, what then;
what is done when _; what happens once _; _; what should i do when _; what does the gateway do when _;
what is going on when _; what can i do if _; can slurmgate handle it if _; what happens as soon as _;
what becomes of my request when _; what do i do if _; what would happen if _
""")
SYNONYMS = {
    "create": ("make", "generate", "get", "add", "set up"),
    "make": ("create", "produce"),
    "generate": ("create", "make"),
    "start": ("launch", "begin", "boot", "run"),
    "launch": ("start", "run"),
    "stop": ("end", "shut down", "halt"),
    "happens": ("occurs", "goes on", "takes place", "will happen"),
    "explain": ("describe", "clarify", "outline"),
    "use": ("employ", "work with", "utilize"),
    "see": ("view", "look at", "find", "check"),
    "show": ("display", "print", "list"),
    "list": ("show", "display", "enumerate"),
    "get": ("obtain", "receive", "fetch"),
    "need": ("require", "want"),
    "delete": ("remove", "drop", "erase"),
    "remove": ("delete", "drop"),
    "change": ("modify", "switch", "alter"),
    "choose": ("select", "pick"),
    "select": ("choose", "pick"),
    "configure": ("set up", "customize", "define"),
    "submit": ("send", "hand in", "start"),
    "cancel": ("abort", "stop", "kill"),
    "key": ("token", "api key"),
    "big": ("large", "huge"),
    "fails": ("breaks", "goes wrong", "crashes", "dies"),
    "crashes": ("fails", "dies", "breaks"),
    "reached": ("hit", "over", "up"),
    "handle": ("deal with", "manage", "treat", "cope with"),
    "supported": ("available", "possible", "offered"),
    "support": ("offer", "allow", "provide", "have"),
    "gateway": ("server", "service", "proxy"),
    "models": ("llms", "language models"),
    "way": ("method", "procedure"),
    "many": ("several", "lots of"),
    "tell": ("inform", "show"),
    "write": ("compose", "prepare"),
    "works": ("functions", "operates"),
    "work": ("function", "operate"),
    "mean": ("signify", "stand for"),
    "run": ("execute", "start"),
    "wall": ("wall-clock",),
    "idle": ("unused", "inactive"),
    "available": ("offered", "there"),
    "which": ("what",),
    "my": ("our", "the", "a"),
    "fast": ("quick", "speedy"),
    "slow": ("sluggish",),
    "wrong": ("incorrect", "bad", "broken", "false", "mistaken"),
    "send": ("submit", "post"),
    "set": ("define", "specify"),
    "node": ("machine", "server"),
    "gpus": ("graphics cards", "gpu cards"),
    "request": ("query", "call"),
    "i": ("we", "one"),
    "ends": ("finishes", "stops", "is over"),
    "time": ("time",),
    "done": ("finished", "over"),
    "put": ("place", "write"),
    "purpose": ("goal", "point", "idea"),
    "difference": ("distinction",),
    "answer": ("reply", "response"),
    "free": ("available",),
    "memory": ("ram",),
    "batch": ("batch job",),
    "waits": ("hangs", "is stuck"),
    "waiting": ("stuck", "hanging"),
    "should": ("must", "do"),
    "command": ("cli command", "tool", "instruction", "call"),
    "document": ("text",),
    "replica": ("replica", "instance"),
    "stored": ("kept", "saved"),
    "print": ("show", "output", "display"),
    "find": ("locate", "discover", "look up"),
    "check": ("test", "verify", "inspect", "examine"),
    "error": ("mistake", "problem", "failure"),
    "gone": ("lost", "away", "missing"),
    "lost": ("gone", "missing"),
    "dies": ("breaks", "fails", "crashes", "disappears"),
    "down": ("offline", "dead", "unavailable"),
    "several": ("multiple", "many", "some", "two", "a few"),
    "two": ("several", "three", "multiple"),
    "exist": ("are there", "are offered"),
    "used": ("employed", "taken", "needed"),
    "needed": ("required", "necessary"),
    "required": ("needed", "necessary"),
    "question": ("request", "query"),
    "describe": ("explain", "characterise"),
    "allowed": ("permitted",),
    "possible": ("allowed", "doable"),
    "program": ("script", "software"),
    "cluster": ("machine", "supercomputer", "hpc system"),
    "users": ("people", "clients", "colleagues"),
    "user": ("person", "client", "colleague"),
    "file": ("document",),
    "text": ("prompt",),
    "url": ("address", "link"),
    "address": ("url", "location"),
    "name": ("title",),
    "long": ("much time",),
    "chat": ("conversation",),
    "prompts": ("questions", "texts", "requests"),
    "prompt": ("question", "text"),
    "requests": ("queries", "calls", "questions"),
    "finished": ("done", "completed", "over", "ready"),
    "completed": ("finished", "done"),
    "running": ("active", "up", "alive"),
    "results": ("answers", "outcome"),
    "output": ("result", "answers"),
    "container": ("image",),
    "engine": ("inference server",),
    "engines": ("inference servers",),
    "state": ("condition", "status"),
    "status": ("state",),
    "states": ("conditions", "stages"),
    "limit": ("maximum", "cap"),
    "maximum": ("largest", "highest"),
    "logs": ("log output", "messages"),
    "replicas": ("copies", "instances"),
    "job": ("task",),
    "jobs": ("tasks",),
    "submitted": ("sent", "queued"),
    "reason": ("cause",),
    "install": ("set up", "get"),
    "python": ("python",),
    "slowly": ("slow",),
    "speed": ("performance",),
    "measure": ("determine", "test"),
    "upload": ("send", "transfer"),
    "download": ("fetch", "get"),
    "private": ("confidential", "secret"),
    "client": ("program", "application"),
    "answers": ("replies", "responses"),
    "leaked": ("was published", "got out"),
}
PHRASES = (  # (as written in the facts, other ways to say it); only the first that fits is used
    (
        "what happens when",
        (
            "what becomes of it when",
            "what follows when",
            "what will slurmgate do when",
            "what is going to happen when",
            "what occurs when",
        ),
    ),
    (
        "what happens if",
        (
            "what comes next if",
            "what will happen in case",
            "what would happen if",
            "what will the gateway do if",
        ),
    ),
    (
        "what if",
        (
            "what about the case that",
            "suppose that",
            "what would happen if",
            "how about when",
            "what do we do if",
        ),
    ),
    (
        "how do i",
        (
            "in what way do i",
            "how might i",
            "what is the procedure to",
            "how could one",
            "how does a person",
            "what must i do to",
            "by which means can i",
            "how is it that i",
            "how am i supposed to",
            "how does somebody",
            "how can anyone",
            "how would someone",
            "what do i need to do in order to",
        ),
    ),
    (
        "how can i",
        (
            "how am i able to",
            "in which way can i",
            "how might one",
            "how may i",
            "by what means do i",
            "what would i do to",
            "what lets me",
        ),
    ),
    (
        "what is the",
        (
            "what's the",
            "what would be the",
            "tell me the",
            "i'd like to know the",
            "i am looking for the",
            "what was the",
        ),
    ),
    (
        "what is",
        (
            "what do people mean by",
            "what do we call",
            "what is understood by",
            "what should i know about",
            "what's this",
            "what kind of thing is",
            "what sort of thing is",
            "i have never heard of",
            "what would you say is",
            "could you define",
            "what do you mean by",
            "so what is",
            "what is this",
        ),
    ),
    (
        "what are",
        (
            "what do people mean by",
            "what should i know about",
            "what kind of things are",
            "could you list",
            "i'd like to know the",
            "name",
        ),
    ),
    ("what does", ("what will", "what would", "what did", "what can")),
    (
        "can i",
        (
            "may i",
            "am i allowed to",
            "could i",
            "is it allowed to",
            "is it ok to",
            "would it be possible to",
            "will i be able to",
            "is there any way to",
        ),
    ),
    (
        "does slurmgate",
        (
            "does it",
            "can it",
            "will it",
            "can slurmgate",
            "will slurmgate",
            "does the gateway",
            "is slurmgate able to",
            "does this",
            "could it",
        ),
    ),
    (
        "why do i get",
        (
            "what is the reason for",
            "what causes",
            "where does it come from that i get",
            "i suddenly see",
            "i just got",
            "how come i get",
        ),
    ),
    (
        "which command",
        (
            "what command",
            "what slurm or slurmgate command",
            "what tool",
            "which call",
            "what should i type that",
            "which instruction",
        ),
    ),
    (
        "where is",
        (
            "where do i find",
            "where can i find",
            "in which place is",
            "where would i look for",
            "i can't find",
            "how do i find",
        ),
    ),
    (
        "where are",
        (
            "where do i find",
            "where can i find",
            "in which place are",
            "i can't find",
            "how do i find",
        ),
    ),
    (
        "is there",
        (
            "do you have",
            "does slurmgate have",
            "can i find",
            "does it come with",
            "do we have",
            "is it possible to have",
        ),
    ),
    (
        "tell me about",
        (
            "what can you tell me about",
            "i'd like to hear about",
            "give me information about",
            "say something about",
            "inform me about",
        ),
    ),
    (
        "explain",
        (
            "could you explain",
            "i need an explanation of",
            "help me understand",
            "please describe",
            "clarify",
            "i'd like to understand",
        ),
    ),
    (
        "how does",
        (
            "in what way does",
            "how exactly does",
            "how will",
            "how would",
            "by what means does",
            "how come that",
            "explain how does",
        ),
    ),
    ("how is", ("in what way is", "how exactly is", "how gets", "by what means is")),
    ("how many", ("what number of", "how large a number of", "what is the number of", "how much")),
    ("why is", ("what is the reason that", "how come", "what makes it that", "for what reason is")),
    (
        "i want to",
        (
            "i'd like to",
            "i intend to",
            "my plan is to",
            "i am going to",
            "i wish to",
            "i have been asked to",
            "let me",
        ),
    ),
)
SHORTENINGS = (
    ("what is", "what's"),
    ("who is", "who's"),
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("i am", "i'm"),
    ("you are", "you're"),
    ("can not", "can't"),
    ("how is", "how's"),
    ("where is", "where's"),
    ("i would", "i'd"),
    ("i have", "i've"),
    ("it is", "it's"),
    ("you", "u"),
    ("please", "pls"),
    ("what is", "whats"),
    ("is not", "isn't"),
    ("are", "r"),
    ("going to", "gonna"),
    ("want to", "wanna"),
)
PREFIXES = (
    "hey, ",
    "hi, ",
    "hello, ",
    "hello! ",
    "hi! ",
    "please ",
    "please, ",
    "please tell me: ",
    "quick question: ",
    "so, ",
    "ok, ",
    "ok so ",
    "one question: ",
    "can you tell me ",
    "could you tell me ",
    "do you know ",
    "i wonder ",
    "i want to know ",
    "i'd like to know ",
    "tell me, ",
    "excuse me, ",
    "question: ",
    "and ",
    "but ",
    "now, ",
    "well, ",
    "sorry, ",
    "could you please tell me ",
    "another question: ",
    "i was wondering ",
    "would you tell me ",
    "thanks. ",
    "good morning, ",
    "briefly, ",
    "in slurmgate, ",
    "hey there, ",
    "hi guide, ",
    "could you explain ",
    "can you say ",
    "please answer: ",
    "i need help: ",
    "dear assistant, ",
    "just curious: ",
    "actually, ",
)
SUFFIXES = (
    " please",
    ", please",
    " thanks",
    " in slurmgate",
    " here",
    " exactly",
    " with slurmgate",
    " in short",
    " briefly",
    " for me",
    "? thanks",
    "? i am new here",
    " then",
    " now",
    " actually",
    " in general",
    "? please explain",
    "? thank you",
    " on our cluster",
    " in detail",
    " on the cluster",
    " by the way",
    "? i don't get it",
    "? can you explain",
    " in one sentence",
    " in simple words",
    " for beginners",
    ", can you tell me",
    "? answer briefly",
    " at all",
    " again",
    " anyway",
)
LEADS = (
    "i am a student. ",
    "i am new here. ",
    "we have a small cluster. ",
    "my colleague asked me: ",
    "our cluster has 20 nodes. ",
    "i have a question. ",
    "i use python. ",
    "i have read the readme. ",
    "i am an administrator. ",
    "i am setting up slurmgate. ",
    "my professor wants to know: ",
    "help! ",
    "i tried everything. ",
    "it is urgent. ",
    "sorry for the stupid question: ",
    "we use slurm. ",
    "i am testing slurmgate. ",
    "just to be sure: ",
    "i am a beginner, ",
    "before i start, ",
    "i read about it yesterday. ",
    "first question: ",
    "one more thing: ",
    "for my thesis: ",
    "i am confused. ",
    "for a lecture: ",
    "i am preparing a course. ",
    "our users ask: ",
    "i installed slurmgate today. ",
    "ok next: ",
    "i am curious, ",
    "somebody told me to ask: ",
)
INSERTS = (
    "actually",
    "really",
    "exactly",
    "just",
    "please",
    "simply",
    "now",
    "currently",
    "normally",
    "usually",
    "maybe",
    "even",
)
NAMES = (  # for "slurmgate"
    "it",
    "the gateway",
    "this gateway",
    "the service",
    "the server",
    "this software",
    "this thing",
    "the system",
)
ACRONYMS = {
    "slurm": "Slurm",
    "api": "API",
    "gpu": "GPU",
    "gpus": "GPUs",
    "url": "URL",
    "openai": "OpenAI",
    "langchain": "LangChain",
    "vllm": "vLLM",
    "tgi": "TGI",
    "tei": "TEI",
    "sglang": "SGLang",
    "cpu": "CPU",
    "cpus": "CPUs",
    "http": "HTTP",
    "json": "JSON",
    "hugging": "Hugging",
    "face": "Face",
    "rag": "RAG",
    "llm": "LLM",
    "cli": "CLI",
    "qos": "QOS",
    "sqlite": "SQLite",
    "python": "Python",
    "postgresql": "PostgreSQL",
    "docker": "Docker",
    "apptainer": "Apptainer",
    "prometheus": "Prometheus",
    "grafana": "Grafana",
    "sdk": "SDK",
    "ai": "AI",
    "toml": "TOML",
    "jsonl": "JSONL",
    "hpc": "HPC",
    "litellm": "LiteLLM",
    "slurmgate": "Slurmgate",
    "singularity": "Singularity",
    "usr1": "USR1",
    "llama": "Llama",
    "i": "I",
    "i'm": "I'm",
    "url?": "URL?",
    "id": "ID",
    "ttft": "TTFT",
}
FOLLOW_UPS = (
    "tell me more",
    "more",
    "go on",
    "continue",
    "and then",
    "what else",
    "can you say more about that",
    "more details please",
    "tell me more about that",
    "tell me more about it",
    "what else should i know",
    "give me more details",
    "please continue",
    "explain more",
    "what more can you say",
    "more about this",
    "anything else about that",
    "interesting, tell me more",
    "and what else",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a helpful AI assistant.",
    "Answer briefly.",
    "Be concise.",
    "You are an assistant for users of a cluster.",
    "You are the assistant of slurmgate.",
    "Answer in one sentence.",
    "You are a chatbot.",
    "You are ChatGPT, a large language model.",
    "You are a friendly assistant. Answer the user's questions.",
    "Be polite and helpful.",
    "You are an expert in high performance computing.",
    "Answer in English.",
    "You are a pirate.",
    "Respond in JSON.",
    "Think step by step.",
    "You are a helpful assistant that answers questions about the cluster. Keep your answers short and say"
    " so when you do not know.",
    "Today is Monday.",
    "The user is a researcher.",
    "Do not make things up.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You answer the questions of students and researchers at a university. Always be polite, correct and short.",
    "test",
    "Hello.",
)
FOREIGN_LINES = lines("""
what is the capital of france; what is the capital of germany; who is the president of the united states;
what is 2+2; what is 2 + 2; what time is it; what day is it today; how is the weather;
what is the weather like today; tell me a joke; tell me a story; write a poem; write a poem about the sea;
write a haiku; sing a song; translate hello to french; translate this text to german;
what is the meaning of life; who won the world cup; who wrote hamlet; who painted the mona lisa;
how tall is mount everest; how old is the universe; how far is the moon; what is the speed of light;
solve x^2 = 4; calculate 17 times 23; what is the square root of 16; what is the derivative of x squared;
write a python function that sorts a list; write a program in c; write a for loop in javascript;
fix this code; explain quantum physics; explain general relativity; what is machine learning;
what is deep learning; what is a neural network; what is a transformer model; how do plants grow;
how do i bake bread; how do i cook pasta; give me a recipe for pancakes; recommend a book;
recommend a movie; what should i eat today; what is love; are you in love; do you have feelings;
can you dream; do you sleep; how do i lose weight; how do i learn spanish; how do i tie a tie;
how do i fix my car; how do i get rich; what stocks should i buy; what is bitcoin;
how does the stock market work; who is albert einstein; who was napoleon; who is elon musk;
when did the second world war end; when was rome founded; what is photosynthesis; what is dna;
what causes rain; why is the sky blue; why do cats purr; how many legs does a spider have;
how many people live in china; what language is spoken in brazil; where is paris; where is my phone;
where do penguins live; what is the largest ocean; what is the longest river; which planet is the largest;
which country has the most people; name three colors; list the planets; count to ten; spell banana;
what rhymes with cat; give me a synonym for happy; summarize this article; summarize the following text;
write an email to my boss; write a letter; write an essay about history; write a short story about a dragon;
write a cover letter; proofread my text; correct my grammar; play chess with me; let's play a game;
roll a dice; flip a coin; pick a number; guess my age; what is my name; where am i from; who am i;
what did i eat yesterday; how old are you; do you like music; what is your favorite color;
do you have a girlfriend; what is your opinion on politics; who should i vote for; is god real;
what is truth; what is kubernetes; how do i install ubuntu; how do i use git; what is docker swarm;
how do i create a github repository; what is aws; what is terraform; how do i install windows;
how do i install numpy; how do i create a database table; what is sql; what is html; what is css;
what is react; how do i write a regex; how do i exit vim; how do i rename a branch in git; what is linux;
what is a linked list; how does tcp work; what is dns; what is an ip address; what is bluetooth;
book a flight to london; order a pizza; set an alarm; remind me to call mom; call my mother;
turn on the light; what's on tv; play some music; open the door; find a restaurant near me;
how do i get to berlin; how much is a ticket to tokyo; is it going to rain tomorrow;
what is the temperature outside; is it cold in moscow; explain the french revolution;
who discovered america; who invented the telephone; when was shakespeare born; how does a car engine work;
how do airplanes fly; how does a microwave work; how is cheese made; what is gravity; what is an atom;
what is a black hole; what is the chemical formula of water; what is salt made of; how do vaccines work;
what are the symptoms of flu; i have a headache; should i see a doctor; i feel sad; i am bored; i am hungry;
i am tired; i love pizza; my cat is sick; my computer is slow; my phone is broken; my car does not start;
my wifi does not work; i forgot my email password; what is a good password;
the quick brown fox jumps over the lazy dog; lorem ipsum dolor sit amet; once upon a time;
to be or not to be; roses are red; in the beginning; it was a dark night; wie ist das wetter;
was ist die hauptstadt von frankreich; quelle heure est-il; como estas; wie alt bist du; was kannst du;
comment ca va; que hora es; what is the difference between a crocodile and an alligator;
compare apples and oranges; what is better, tea or coffee; who is stronger, batman or superman;
give me ten ideas for a birthday party; make a plan for my holiday; what are the rules of football;
how long does it take to boil an egg; what is the gdp of japan; extract the names from this text;
classify this review as positive or negative; what is the sentiment of this sentence; rewrite this sentence;
make this shorter; what is the population of italy; name a famous painter; who sang thriller;
what instrument has 88 keys; what is the boiling point of water; how many days are in a year;
what year is it; what is the date; how do i make coffee; how do i draw a horse; what is philosophy;
who was plato; what is democracy; what is inflation; write unit tests for my function; generate a password;
generate an image of a cat; draw a cat; write sql to join two tables; debug my javascript;
what is an api key in aws; describe a sunset; write about autumn; imagine a world without money;
what would you do with a million dollars; tell me about dinosaurs; tell me about rome; tell me about cars;
how does a computer work; how does the internet work; what is artificial intelligence;
what is a gpu made of; who founded google; who makes the iphone; what is tesla; what is the density of gold;
what is the freezing point of water; how hot is the sun; how deep is the ocean; how fast is a cheetah;
how heavy is an elephant; how big is russia; how long is the nile; what is the area of canada;
what is the currency of japan; what is the national animal of scotland; who is the king of spain;
who is the pope; who is the founder of microsoft; who invented the light bulb; who built the pyramids;
who was the first man on the moon; who directed titanic; who plays james bond; who won the champions league;
who won the oscar; when is christmas; when is easter; when did columbus sail;
when was the berlin wall built; why do leaves fall; why is the sea salty; why do we dream;
why do birds sing; why is grass green; why did the roman empire fall; what does love mean;
what does hello mean in italian; what does my dream mean; say good night in french;
how do you say thank you in japanese; translate this sentence; translate the word house;
write a java program; write a class in c++; write a shell script that renames files; write a bash loop;
write a regular expression for emails; write a business plan; write a speech; write a song;
write a letter to my landlord; write a product description; give me a workout plan;
give me tips for sleeping; give me advice on dating; give me a recipe with chicken;
suggest a name for my dog; suggest a present for my wife; suggest a hotel; recommend a museum;
recommend a laptop; recommend a good film; best restaurants in town; best phone; cheap flights;
news of today; latest football results; stock price of apple; weather tomorrow; traffic now;
the price of gold; the capital of australia; the president of france; the population of the world;
the tallest building; pythagoras theorem; newton's laws; periodic table; ohm's law; the big bang; evolution;
the cold war; the renaissance; the stone age; how do i clean a window; how do i unclog a sink;
how do i change a tyre; how do i hang a picture; how do i make a paper plane; how do i stop smoking;
how do i get a driving licence; how do i register a car; how do i file my taxes; how do i install a printer;
how do i update my phone; how do i uninstall a program on windows; how do i use photoshop;
how do i write a novel; how do i play the violin; how do i make ice cream; how do i whistle;
how do i juggle; how are cars built; how are diamonds formed; how are babies made; how is paper made;
how is glass made; how is chocolate produced; how does the heart work; how does a fridge work;
how does a nuclear reactor work; how does the brain learn; how do magnets work; explain gravity;
explain inflation; explain evolution; explain chess; explain the rules of baseball; explain how rockets fly;
what is half of 50; what is 10 percent of 200; 5 times 6; 7 * 8; 100 / 4; 3 + 9; 12 minus 5;
how many minutes are in a week; how many bones does a human have; how many planets are there;
how many continents are there; how many letters has the alphabet; is there life on mars; is the earth flat;
is a tomato a fruit; is sugar bad; is coffee healthy; are sharks dangerous; are ghosts real;
can dogs eat grapes; can fish sleep; can pigs fly; can you cook; can you drive; can you sing;
can you tell a joke; can you speak german; do you like cats; do you eat; do you have a family;
do you believe in god; do you play football; i have a dog; i live in munich; my name is peter;
i am learning to cook; i broke my leg; i lost my wallet; i need a doctor; i need a job; i want to travel;
i want to be an actor; i am from italy; a story about a princess; a poem for my mother; a joke please;
sudoku; horoscope; lottery numbers; crossword answer; riddle me this; knock knock
""")
FOREIGN = lines("""
who invented _; when was _ invented; where is _; how is _ made; why is _ so popular; write a poem about _;
write a story about _; tell me a joke about _; how much does _ cost; what color is _;
who is the inventor of _; how old is _; what do you think about _; do you like _; where can i buy _;
what is the history of _; how many kinds of _ are there; translate _ to ~; is _ healthy;
what is the capital of ~; how far is ~; what is # plus #; what is # times #; calculate # * #; # + #;
what is the weather in ~; how many people live in ~; who is the president of ~; recommend a book about _;
give me a recipe for _; draw _; compare _ and ~; what is the best _; summarize a book about _;
write an essay about _; how do i learn _; teach me _; i love _; i hate _; the _ is broken;
my _ does not work; explain _ to a child; sing a song about _; what is the price of _;
write python code for _; what is # minus #; when does the train to ~ leave; who lives in ~;
what language do they speak in ~; is ~ a country; what is _ made of; what are the rules of _;
how does _ taste; where does _ come from; i want to buy _; list ten facts about _;
is it true that _ is from ~; what is the difference between _ and ~; can you eat _; what's the plural of _;
who owns _; why do people like _; how heavy is _
""")
FOREIGN_NOUNS = lines("""
bread; cheese; football; tennis; music; jazz; the piano; a guitar; chess; poker; coffee; tea; wine; beer;
chocolate; pizza; pasta; sushi; rice; an apple; a banana; the sun; the moon; mars; jupiter; a galaxy;
a comet; gravity; electricity; magnetism; a laser; a battery; an engine of a car; a bicycle; a train;
an airplane; a ship; a rocket; the telephone; television; radio; the camera; a printer; a keyboard; a mouse;
a cat; a dog; a horse; an elephant; a whale; a shark; a spider; a bee; a butterfly; an oak tree; a rose;
grass; the ocean; a river; a mountain; a volcano; an earthquake; rain; snow; the wind; climate change;
the weather; history; rome; ancient greece; the middle ages; napoleon; shakespeare; goethe; mozart;
beethoven; picasso; einstein; newton; darwin; philosophy; religion; politics; democracy; law; economics;
inflation; money; the euro; bitcoin; a bank; insurance; taxes; marketing; a startup; mathematics; algebra;
geometry; calculus; statistics; a prime number; pi; an integral; a matrix; a triangle; physics; chemistry;
biology; medicine; a virus; bacteria; the heart; the brain; blood; dna; protein; vitamins; sleep; yoga;
running; swimming; a marathon; the olympics; a movie; star wars; harry potter; a novel; poetry; a newspaper;
grammar; french; spanish; german; chinese; latin; javascript; java; c++; rust; go; php; excel; word;
powerpoint; windows; linux; ubuntu; macos; android; git; github; kubernetes; terraform; ansible; jenkins;
aws; azure; google cloud; mysql; mongodb; redis; kafka; spark; hadoop; react; angular; html; css; a browser;
firefox; email; whatsapp; facebook; instagram; a password; encryption; a firewall rule in windows; wifi;
bluetooth; usb; a robot; a drone; quantum computing; blockchain; tensorflow; pandas; numpy; matplotlib;
latex; photoshop; a garden; a house; a kitchen; furniture; a shirt; shoes; fashion; travel; paris; london;
tokyo; new york; africa; asia; the desert; the jungle; a forest; a farm; milk; eggs; meat; fish; vegetables;
a salad; soup; cake; cookies; salt; sugar; water; air; gold; silver; iron; plastic; paper; glass; wood;
stone
""")
FOREIGN_ACTS = lines("""
bake a cake; cook rice; make coffee; learn french; learn to swim; fix a bicycle; repair my car; buy a house;
sell my car; write a novel; write a poem; draw a cat; paint a wall; plant a tree; grow tomatoes;
lose weight; sleep better; run faster; find a job; write a cv; prepare an interview; learn python;
learn programming; install windows; install ubuntu; install photoshop; use excel; make a pivot table;
sort a list in java; reverse a string; write a loop; parse html; center a div; merge a branch;
commit to git; undo a commit; clone a repository from github; create a github account;
create an email account; change my facebook password; delete my instagram; connect to wifi;
print a document; scan a document; convert a pdf; edit a video; crop an image; take a screenshot;
reset my phone; charge my battery; build a house; clean the kitchen; wash clothes; iron a shirt; cut onions;
boil eggs; make pizza; order food; book a hotel; book a flight; travel to japan; get a visa; get a passport;
drive a car; park a car; play the guitar; play chess; sing better; dance; meditate; invest money;
save taxes; open a bank account; start a company; raise a child; train a dog; feed a cat; catch a fish;
ride a horse; climb a mountain; solve an equation; compute an integral; prove a theorem;
measure the distance to the moon; build a robot; train a neural network from scratch; install tensorflow;
plot a graph in matplotlib; write sql queries; create a table in mysql; deploy to kubernetes;
create an s3 bucket; start an ec2 instance; set up a printer; update my browser; remove a virus;
write a letter; translate a text; summarize a book; learn grammar; become a doctor; become rich; be happy;
make friends; get married
""")
FOREIGN_VALUES = (
    "Paris",
    "London",
    "Berlin",
    "Spain",
    "Italy",
    "Japan",
    "China",
    "Brazil",
    "Canada",
    "Norway",
    "Vienna",
    "Madrid",
    "Rome",
    "Lisbon",
    "Peru",
    "Kenya",
    "India",
    "Chile",
    "Egypt",
    "Greece",
    "Poland",
    "Sweden",
    "Oslo",
    "Cairo",
    "Lima",
    "Texas",
    "Boston",
    "Sydney",
)
SCHEMAS = (  # a statement with invented names, and questions about it
    (
        "The capital of <N> is <M>.",
        "What is the capital of <N>?",
        "what is the capital of <N>",
        "Which city is the capital of <N>?",
    ),
    (
        "<N> was founded in <y>.",
        "When was <N> founded?",
        "In which year was <N> founded?",
        "what year was <N> founded",
    ),
    ("<N> lives in <v>.", "Where does <N> live?", "where does <N> live", "In which place does <N> live?"),
    ("<N> likes <x>.", "What does <N> like?", "what does <N> like"),
    (
        "The price of <x> is <d> euros.",
        "What is the price of <x>?",
        "How much does <x> cost?",
        "how much is <x>",
    ),
    ("<N> has <d> employees.", "How many employees does <N> have?", "how many employees does <N> have"),
    (
        "<N> wrote the book <M> in <y>.",
        "Who wrote <M>?",
        "When was <M> written?",
        "What did <N> write?",
        "who wrote the book <M>",
    ),
    (
        "The project <N> is led by <M>.",
        "Who leads the project <N>?",
        "Who leads <N>?",
        "who is the leader of <N>",
    ),
    (
        "The office of <N> is in room <d>.",
        "Where is the office of <N>?",
        "In which room is <N>?",
        "which room is the office of <N> in",
    ),
    (
        "The password of <N> is <M>.",
        "What is the password of <N>?",
        "what is the password of <N>",
        "Which password does <N> have?",
    ),
    (
        "The code of the door <N> is <d>.",
        "What is the code of the door <N>?",
        "What is the code of <N>?",
        "which code has <N>",
    ),
    (
        "The <N> library opens at <d> in the morning.",
        "When does the <N> library open?",
        "when does <N> open",
        "At what time does the <N> library open?",
    ),
    ("<N> is made of <x>.", "What is <N> made of?", "what is <N> made of"),
    ("<N> studied <x> in <v>.", "What did <N> study?", "Where did <N> study?", "where did <N> study"),
    ("The favourite food of <N> is <x>.", "What is the favourite food of <N>?", "What does <N> like to eat?"),
    ("The height of <N> is <d> metres.", "How high is <N>?", "What is the height of <N>?", "how tall is <N>"),
    (
        "<N> was born in <v> in <y>.",
        "Where was <N> born?",
        "When was <N> born?",
        "In which year was <N> born?",
    ),
    ("The river <N> flows through <v>.", "Where does the river <N> flow?", "Which river flows through <v>?"),
    ("The meeting of <N> is on the <d>th.", "When is the meeting of <N>?", "When does <N> meet?"),
    ("<N> is the director of <M>.", "Who is the director of <M>?", "What does <N> do?", "who directs <M>"),
)
RAG_PROMPTS = (  # (system prompt, user message)
    ("", "Context: <context>\n\nQuestion: <question>"),
    ("", "Context: <context> Question: <question>"),
    ("", "Context:\n<context>\n\nQuestion: <question>\nAnswer:"),
    ("Use the following context to answer the question.\n\n<context>", "<question>"),
    ("You are a helpful assistant. Use this context: <context>", "<question>"),
    ("", "Answer the question based only on the following context:\n<context>\n\nQuestion: <question>\n"),
    (
        "You are an assistant for question-answering tasks. Use the following pieces of retrieved context"
        " to answer the question. If you don't know the answer, say that you don't know. Use three"
        " sentences maximum and keep the answer concise.\n\n<context>",
        "<question>",
    ),
    (
        "",
        "You are an assistant for question-answering tasks. Use the following pieces of retrieved context"
        " to answer the question. If you don't know the answer, just say that you don't know. Use three"
        " sentences maximum and keep the answer concise.\nQuestion: <question> \nContext: <context>"
        " \nAnswer:",
    ),
    (
        "",
        "Use the following pieces of context to answer the question at the end. If you don't know the"
        " answer, just say that you don't know, don't try to make up an answer.\n\n<context>\n\nQuestion:"
        " <question>\nHelpful Answer:",
    ),
    (
        "Use the following pieces of context to answer the user's question. If you don't know the answer,"
        " just say that you don't know, don't try to make up an answer.\n----------------\n<context>",
        "<question>",
    ),
    ("Answer the user's questions based on the below context:\n\n<context>", "<question>"),
    ("", "<context>\n\n<question>"),
    ("Answer from the context.", "Context: <context>\nQuestion: <question>"),
)
