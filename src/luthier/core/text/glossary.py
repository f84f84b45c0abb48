"""The words of the pages, each explained in one or two sentences for someone who is new to the field.

One source for the "?" beside a word on a page, the page `/glossary`, `luthier glossary` and the first table of
docs/glossary.md (`tests/core/text/test_glossary.py` holds them equal).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.errors import NotFoundError
from luthier.core.text.suggest import suggest_ids

Topic = Literal["Data", "Training", "Evaluation", "Use", "Cost"]


@dataclass(frozen=True, slots=True)
class Term:
    """A word of the pages.

    Attributes:
        name: The word, as pages write it.
        meaning: What it is, in plain sentences.
        topic: Where it belongs.
        also: Other forms and words for the same thing.
    """

    name: str
    meaning: str
    topic: Topic
    also: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Of its place on the page `/glossary`, and of its element on other pages."""
        return self.name.replace(" ", "-").replace("/", "-").lower()


_DATA: Final = (
    (
        "dataset",
        "Your examples under one name. Each change makes a new version, and old versions stay as they were.",
        "datasets",
    ),
    (
        "version",
        "One state of a dataset. It never changes, so a result can always be traced to its data.",
        "versions",
    ),
    ("row", "One record of a file: one question with its answer, or one text with its label.", "rows"),
    ("column", "One field of every row, such as the question or the answer.", "columns"),
    ("label", "The category that a text belongs to, such as “complaint” or “order”.", "labels"),
    ("passage", "A piece of a document, about a paragraph long.", "passages"),
    ("training rows", "The rows that the model learns from.", "training row"),
    (
        "validation rows",
        "Rows that the model does not learn from. During training they show which state of the model is best.",
        "validation row",
    ),
    (
        "held-out rows",
        "Rows that the model never sees in training. They test it once, at the end, like an exam with new questions.",
        "held-out row",
        "held out",
    ),
    ("split", "The division of rows into those to learn from and those to test with.", "splits"),
    ("leakage", "A test row that is also a training row. The result then looks better than it is.", "leak"),
    (
        "near-duplicate",
        "A row whose text is almost the same as that of another row.",
        "near-duplicates",
        "duplicates",
    ),
    (
        "audit",
        "An automatic check of your rows. It finds duplicates, empty fields, personal data and other faults, and "
        "gives a grade.",
        "audits",
    ),
    (
        "repair",
        "A new version of a dataset without the faults that the audit found. You see every change before it is made.",
        "repairs",
    ),
    ("personal data", "Names, addresses, numbers and keys that identify a person or open an account.", "pii"),
    (
        "synthetic data",
        "Questions and answers that a model wrote from your documents. You accept, correct or reject each of them.",
        "synthesis",
    ),
    (
        "teacher",
        "A larger model that writes answers for a smaller one to learn from.",
        "teacher model",
        "teachers",
        "distillation",
    ),
)
_TRAINING: Final = (
    (
        "fine-tuning",
        "Training an existing language model further with your own examples, so that it does your task.",
        "fine-tune",
        "tuning",
    ),
    ("base model", "The finished language model that training starts from.", "base models", "untuned model"),
    (
        "tuned model",
        "The result of a training run: the base model with what it learned from your rows.",
        "tuned models",
    ),
    (
        "parameters",
        "The numbers that a model consists of. More of them mean better answers, more memory and more time.",
        "parameter",
    ),
    (
        "token",
        "A piece of text, about three quarters of a word. Models read and write tokens, and count length in them.",
        "tokens",
    ),
    ("context", "The longest text that a model can read at once, in tokens.", "context length"),
    (
        "chat template",
        "The fixed form in which a model reads a conversation: who speaks, and where a turn ends.",
        "chat templates",
    ),
    (
        "loss mask",
        "It marks the parts of a row that the model learns: as a rule the answers, and not the questions.",
        "loss masks",
    ),
    ("run", "One training: a base model, rows and settings go in, a tuned model comes out.", "runs"),
    ("recipe", "The settings of a run as a file. What you leave out is decided for you.", "recipes"),
    ("plan", "The complete settings of a run, with a forecast of time, price and memory before it starts.", "plans"),
    ("method", "How the weights of the model change in training: a small part of them, or all.", "methods"),
    (
        "adapter",
        "A small add-on with what a model learned. It is far smaller than the model and is loaded together with it.",
        "adapters",
    ),
    ("LoRA", "The usual method: the base model stays as it is, and an adapter is trained. It needs little memory."),
    ("rank", "The size of an adapter. A larger one can learn more, and needs more rows."),
    (
        "objective",
        "What the model learns from a row: to write the answer, to choose a label, or to prefer one answer to another.",
        "objectives",
    ),
    ("preference pair", "One question with a better and a worse answer.", "preference pairs", "preferences"),
    ("epoch", "One pass over all training rows.", "epochs"),
    ("step", "One small change of the model, computed from a group of rows.", "steps"),
    ("batch size", "How many rows the model sees in one step.", "batch"),
    (
        "learning rate",
        "How much each step changes the model. Too high, and it forgets; too low, and it learns little.",
    ),
    ("loss", "How far the model's text is from the expected text. It falls while the model learns.", "losses"),
    ("overfitting", "The model memorises the training rows and gets worse on new ones.", "overfit"),
    ("checkpoint", "A saved state of a run. After a stop or a power cut the run continues from it.", "checkpoints"),
    ("seed", "A number that fixes all random choices, so that a run can be repeated.", "seeds"),
    ("GPU", "A processor for many computations at once. A model trains far faster on it.", "graphics card"),
    (
        "quantisation",
        "Storing the numbers of a model with fewer digits. It needs less memory, and answers may be slightly worse.",
        "quantised",
        "quantise",
    ),
    (
        "study",
        "A search for the best settings: several short runs; only the good ones continue.",
        "studies",
        "trial",
        "trials",
    ),
)
_EVALUATION: Final = (
    ("evaluation", "A test of models on held-out rows, with figures and every answer side by side.", "evaluations"),
    ("verdict", "The result of an evaluation in one word: better, worse, or not distinguishable.", "verdicts"),
    ("not distinguishable", "The difference is too small for this number of rows: it may be chance."),
    (
        "baseline",
        "A simple alternative that the tuned model has to beat, such as the most frequent answer.",
        "baselines",
    ),
    ("metric", "One way to score answers, such as the share of exactly right ones.", "metrics"),
    ("exact match", "The share of answers that equal the expected answer."),
    (
        "confidence interval",
        "A range around a figure that very likely contains the true one: 95 of 100 such ranges do. More rows make "
        "it narrower.",
        "interval",
        "intervals",
    ),
    (
        "p-value",
        "How often chance alone would give a difference of at least this size, if both models were equally good. "
        "Small values speak against chance.",
    ),
    ("few-shot", "Some examples in the prompt, in place of training.", "few shot", "examples in the prompt"),
    (
        "classifier",
        "A small program that chooses a label for a text. It needs no language model and answers at once.",
        "linear classifier",
        "classifiers",
    ),
    ("sample", "One answer of a model to one held-out row.", "samples"),
    ("panel", "People who compare answers without knowing which model wrote them.", "panels", "rater", "raters"),
    (
        "judge",
        "A model that rates the answers of other models. How often it agrees with people is measured first.",
        "judges",
    ),
    ("suite", "A fixed set of tests under one name, to repeat on every model.", "suites"),
)
_USE: Final = (
    ("playground", "A page to chat with one model, or with two side by side."),
    ("prompt", "The text that you send to a model.", "prompts"),
    ("system prompt", "Instructions that apply to the whole conversation, before the first question."),
    ("temperature", "How freely a model writes. At 0 it gives the same answer each time; higher values vary more."),
    (
        "deployment",
        "A name that programs send questions to. The model behind it can change, and the name stays.",
        "deployments",
    ),
    (
        "canary",
        "A new model that answers a small share of the questions first. If it does well, it gets all of them.",
        "canary release",
    ),
    ("rollback", "The return to the model that answered before.", "rollbacks"),
    ("release gate", "Conditions that a model must meet before it may be deployed.", "gate", "gates"),
    ("export", "The model as files for other programs, compared with the original before you get them.", "exports"),
    ("GGUF", "A file format for models, read by programs such as Ollama and LM Studio."),
    ("traffic", "The questions and answers of deployed models, as far as they are logged."),
    (
        "drift",
        "The questions or answers of a deployed model change over time, so that old tests may no longer hold.",
        "drift signal",
    ),
    ("alert", "A message that something has changed: errors, waiting time, questions or answers.", "alerts"),
    ("API key", "A password for programs. It says what a program may do, and can be revoked.", "key", "keys"),
    ("job", "Long work of the server, such as a training. It waits in a queue until a worker is free.", "jobs"),
    ("worker", "A process of the server that does one job at a time.", "workers"),
    (
        "webhook",
        "An address of your own program. The server calls it when something happens, such as the end of a run.",
        "webhooks",
    ),
)
_COST: Final = (
    (
        "budget",
        "The most that a run may take: hours, money, energy or tokens. At the limit it pauses and can continue later.",
        "cap",
        "budgets",
    ),
    ("peak memory", "The most memory that a run needs at one time. It must fit into the memory of the machine."),
    ("payback time", "How long it takes until the saved work has paid for training and operation."),
    ("ROI", "Return on investment: what the tuned model saves, compared with what it costs.", "worth", "worth it"),
)
_TOPICS: Final[dict[Topic, tuple[tuple[str, ...], ...]]] = {
    "Data": _DATA,
    "Training": _TRAINING,
    "Evaluation": _EVALUATION,
    "Use": _USE,
    "Cost": _COST,
}
TERMS: Final = tuple(
    Term(name, meaning, topic, tuple(also)) for topic, rows in _TOPICS.items() for name, meaning, *also in rows
)
"""All words, by topic and then in the order in which one meets them."""
_BY_WORD: Final = {word.casefold(): term for term in TERMS for word in (*term.also, term.name)}


def find_term(word: str) -> Term:
    """The term of a word or of one of its other forms, in small or capital letters.

    Raises:
        NotFoundError: The glossary has no such word.
    """
    known = _BY_WORD.get(" ".join(word.split()).casefold())
    if known is not None:
        return known
    raise NotFoundError(
        f"the glossary has no term {word[:60]!r}",
        expected=f"a term of the glossary; {suggest_ids(word, [term.name for term in TERMS])}",
        do="list all terms with `luthier glossary`",
    )


def markdown_table() -> str:
    """The table of docs/glossary.md."""
    lines = ["| word | meaning | topic |", "|---|---|---|"]
    lines += [f"| {term.name} | {term.meaning} | {term.topic} |" for term in TERMS]
    return "\n".join(lines)
