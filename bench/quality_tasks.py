"""Documents with facts hidden in them, and questions: RULER's task families (arXiv 2404.06654) with texts of our own.

The haystack is Python's reference manual as it comes with the interpreter (pydoc_data), which no test of ours wrote.
A seed makes a document; which one depends on nothing else but the tokenizer and the manual's text.
"""
import hashlib
import pydoc_data.topics
import random

NAMES = ("amber basil cedar delta ember fjord grove harbor island jungle kettle lantern meadow nectar orchid pepper "
         "quartz river saddle timber velvet walnut yonder zephyr").split()
TASKS = ("passkey", "multikey", "lookup", "variables", "continuation")
SINKS_TOKENS, NEWEST_TOKENS = 64, 64  # a fact lies past the block that is never evicted, and before the last two
MANUAL = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
MANUAL_SHA256 = hashlib.sha256(MANUAL.encode()).hexdigest()
PARAGRAPHS = [p.strip() for p in MANUAL.split("\n\n")
              if 60 < len(p.strip()) < 900 and "----" not in p and "====" not in p]


def _number(random_):
    return str(random_.randrange(10_000, 100_000))


def _passkey(random_):
    key = _number(random_)
    fact = f"The special pass key is: {key}. Remember it. {key} is the special pass key."
    return [fact], "What is the special pass key mentioned in the text? The special pass key is:", [key]


def _multikey(random_):
    names = random_.sample(NAMES, 4)
    numbers = [_number(random_) for _ in names]
    asked = random_.randrange(len(names))
    facts = [f"The special magic number for {name} is: {number}." for name, number in zip(names, numbers)]
    question = (f"What is the special magic number for {names[asked]} mentioned in the text? "
                f"The special magic number for {names[asked]} is:")
    return facts, question, [numbers[asked]]


def _lookup(random_):
    keys = [f"{random_.randrange(1 << 24):06x}" for _ in range(8)]
    numbers = [_number(random_) for _ in keys]
    asked = random_.randrange(len(keys))
    facts = [f'"{key}": "{number}"' for key, number in zip(keys, numbers)]
    return facts, f'Extract the value of the key. Key: "{keys[asked]}" Value: "', [numbers[asked]]


def _variables(random_):
    names = ["".join(random_.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(3)) for _ in range(3)]
    number = _number(random_)
    facts = [f"VAR {names[0]} = {number}", f"VAR {names[1]} = VAR {names[0]}", f"VAR {names[2]} = VAR {names[1]}"]
    question = (f"Memorize and track the chain of variable assignments in the text. Question: Find all variables that "
                f"are assigned the value {number}. Answer: According to the chain of assignments, 3 variables are "
                f"assigned the value {number}, they are: VAR")
    return facts, question, names


MAKERS = dict(zip(TASKS, (_passkey, _multikey, _lookup, _variables)))  # continuation needs no facts
ANSWER_TOKENS = {"passkey": 8, "multikey": 8, "lookup": 8, "variables": 20}


def _hay(tokenize, tokens, random_):
    start, hay, at = random_.randrange(len(PARAGRAPHS)), [], 0
    while len(hay) < tokens:
        hay += tokenize(PARAGRAPHS[(start + at) % len(PARAGRAPHS)] + "\n\n", False)
        at += 1
    return hay


def document(tokenize, names, seed, tokens, more=0):
    """A document that holds the facts of all named tasks.

    Returns its tokens; of each task the question's tokens, and the words that a right answer has; and the `more` tokens
    that follow the document. tokenize(text, begin).
    """
    random_ = random.Random(f"{'+'.join(names)}-{seed}-{tokens}")
    made = [MAKERS[name](random_) for name in names if name in MAKERS]
    asked = [(tokenize("\n\n" + question, False), answers) for _, question, answers in made]
    facts = [tokenize(f"\n\n{fact}\n\n", False) for facts, _, _ in made for fact in facts]
    if len(made) > 1:
        random_.shuffle(facts)
    begin = tokenize("", True)[:1]
    room = tokens - len(begin) - sum(map(len, facts))
    hay = _hay(tokenize, room + more, random_)
    return begin + _hide(facts, hay[:room], random_), asked, hay[room:room + more]


def _hide(facts, hay, random_):
    places = sorted(random_.sample(range(SINKS_TOKENS, len(hay) - NEWEST_TOKENS), len(facts)))
    made, last = [], 0
    for place, fact in zip(places, facts):
        made += hay[last:place] + fact
        last = place
    return made + hay[last:]


def score(answer, answers):
    return sum(word in answer for word in answers) / len(answers)
