"""How people ask for a setting of a run: one option a key, its phrases of training apart from the held-out ones.

Only words; the sentences they stand in are in demo_phrases.py. `[a|b]` is one or the other, `{}` the value.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """The ways to ask for one thing.

    Args:
        nouns: what may follow "with": `rank {}`.
        adverbs: what stands by itself: `for {} steps`.
        sentences: what is a sentence of its own: `set the rank to {}`.
    """

    nouns: tuple[str, ...] = ()
    adverbs: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """One `key=value` of a command.

    Args:
        key: of the config.
        value: the choice it stands for, or the name of the values that fill `{}` (demo_values.py).
        training: what training rows say.
        heldout: what held-out rows say.
        weight: how often it is asked for, against the others.
    """

    key: str
    value: str
    training: Said
    heldout: Said
    weight: float = 1.0


def number(key: str, values: str, name: str, *, training: Said, heldout: Said, weight: float = 2.0) -> Option:
    """An option whose value is copied from the wish: the ways that any number is set, and those of its own.

    Args:
        name: what the number is called: "rank", "learning rate".
        training: ways of its own in training rows; heldout: in held-out rows.
    """
    article = "an" if name[0] in "aeiou" else "a"
    common = Said(
        nouns=(
            f"{name} {{}}",
            f"{name} {{}}",
            f"{name}={{}}",
            f"{name} = {{}}",
            f"{article} {name} [of|set to|fixed at] {{}}",
            f"the {name} [of|set to|fixed at|being|at] {{}}",
            f"{name} [at|of|equals|is] {{}}",
            f"{{}} [for|as] {name}",
            f"{{}} for [the|its] {name}",
        ),
        sentences=(
            f"[set|put|fix|keep|leave|turn] [the |]{name} [to|at|on] {{}}",
            f"[the|my|its] {name} [is|equals] {{}}",
            f"[use|take|pick|select] {{}} [for|as] [the |its |]{name}",
            f"[use|take|i want|try|give it|choose] {name} {{}}",
            f"[use|take|i want|try|give it|choose] {article} {name} of {{}}",
            f"[make|have] the {name} {{}}",
            f"[the |]{name} [must|has to|ought to|shall|will] be {{}}",
            f"let {name} [equal|be] {{}}",
            f"{name} -> {{}}",
        ),
    )
    unseen = Said(
        nouns=(f"{{}} as [the|its] {name}", f"the {name} equal to {{}}", f"{article} {name} that equals {{}}"),
        sentences=(f"the {name} should be {{}}", f"choose {{}} as the {name}", f"let the {name} be {{}}", f"{name}: {{}}"),
    )
    return Option(key, values, joined(common, training), joined(unseen, heldout), weight)


def joined(first: Said, second: Said) -> Said:
    return Said(first.nouns + second.nouns, first.adverbs + second.adverbs, first.sentences + second.sentences)


# In the order in which a command says them.
OPTIONS: tuple[Option, ...] = (
    number(
        "data.max_length",
        "length",
        "max length",
        training=Said(
            nouns=(
                "rows of at most {} tokens",
                "[a context|sequences|rows] of {} tokens",
                "{} tokens per row",
                "rows cut at {} tokens",
                "rows [not longer than|up to|shorter than] {} tokens",
                "a maximum of {} tokens",
            ),
            sentences=(
                "[cut|truncate|trim|shorten] [the |]rows [at|to|after] {} tokens",
                "limit rows to {} tokens",
                "keep rows under {} tokens",
                "at most {} tokens a row",
                "rows must not be longer than {} tokens",
                "[clip|crop] the rows to {} tokens",
                "every row [has|gets] at most {} tokens",
            ),
        ),
        heldout=Said(nouns=("rows no longer than {} tokens",), sentences=("no row should be longer than {} tokens", "clip every row to {} tokens")),
    ),
    number(
        "adapter.r",
        "rank",
        "rank",
        training=Said(
            nouns=(
                "[lora|adapter] rank {}",
                "r={}",
                "r {}",
                "a rank-{} [adapter|lora]",
                "lora r {}",
                "[a lora|a low-rank adapter|an adapter] of rank {}",
                "lora of rank {}",
                "lora (r={})",
            ),
            adverbs=("at rank {}",),
            sentences=("use rank {}", "lora rank is {}", "r is {}", "it needs rank {}"),
        ),
        heldout=Said(nouns=("an adapter rank of {}", "low-rank adapters (rank {})", "a LoRA whose rank is {}"), sentences=("give the adapter a rank of {}",)),
        weight=4.0,
    ),
    number(
        "method.learning_rate",
        "learning_rate",
        "learning rate",
        training=Said(
            nouns=("lr {}", "lr={}", "an lr of {}", "lr = {}", "a peak learning rate of {}", "a peak lr of {}", "learning_rate={}"),
            adverbs=("at lr {}", "at a learning rate of {}", "learning at {}"),
            sentences=("use lr {}", "[the |]lr is {}", "[set|put] the lr [to|at] {}", "use {} for the lr", "lr [must|has to] be {}"),
        ),
        heldout=Said(nouns=("the lr at {}", "a learning rate that peaks at {}"), sentences=("let the learning rate peak at {}", "the lr should be {}")),
        weight=4.0,
    ),
    Option(
        "trainer",
        "cpu",
        training=Said(
            nouns=("the cpu", "only the cpu", "no gpu", "trainer=cpu", "just a cpu"),
            adverbs=("on [the cpu|cpu|a cpu|this cpu]", "[cpu only|cpu-only]", "without [a gpu|the gpu|gpu]", "on the cpu only"),
            sentences=(
                "[use|take|let it use] the cpu",
                "the cpu [does|will do|has to do] [it|everything|the training]",
                "[train|do it] on [a|the] cpu",
                "run [it |this |]on [the |]cpu",
                "[stay|keep it] on the cpu",
                "there is no gpu here",
                "cpu please",
                "[don't|do not] use the gpu",
                "it must run on the cpu",
            ),
        ),
        heldout=Said(adverbs=("on my cpu", "on nothing but the cpu"), sentences=("the cpu should do the work", "let the cpu handle it", "train it on the cpu")),
        weight=1.3,
    ),
    Option(
        "trainer",
        "gpu",
        training=Said(
            nouns=("the gpu", "only the gpu", "a gpu", "trainer=gpu", "my graphics card"),
            adverbs=("on [the gpu|gpu|a gpu|this gpu]", "[gpu only|gpu-only]", "on the graphics card", "on the gpu only"),
            sentences=(
                "[use|take|let it use] the gpu",
                "the gpu [does|will do|has to do] [it|everything|the training]",
                "[train|do it] on [a|the] gpu",
                "run [it |this |]on [the |]gpu",
                "[stay|keep it] on the gpu",
                "there is a gpu here",
                "gpu please",
                "[don't|do not] use the cpu",
                "it must run on the gpu",
            ),
        ),
        heldout=Said(adverbs=("on my gpu", "on nothing but the gpu"), sentences=("the gpu should do the work", "let the gpu handle it", "train it on the gpu")),
        weight=1.3,
    ),
    Option(
        "trainer.max_steps",
        "steps",
        training=Said(
            nouns=(
                "{} steps",
                "{} [training|optimizer|gradient] steps",
                "max steps {}",
                "max_steps={}",
                "a [limit|maximum|total] of {} steps",
                "[at most|no more than|only|exactly] {} steps",
                "steps={}",
                "steps {}",
            ),
            adverbs=(
                "for {} steps",
                "for [only|just|exactly|about] {} steps",
                "over {} steps",
                "until {} steps are done",
                "within {} steps",
                "for {} [training|optimizer] steps",
                "in {} steps",
                "(steps: {})",
            ),
            sentences=(
                "stop [it |]after {} steps",
                "[run|train] [it |]for {} steps",
                "[do|make|take] {} steps",
                "use {} steps",
                "set max steps to {}",
                "stop at step {}",
                "[finish|quit|halt] after {} steps",
                "{} steps [will do|suffice|is enough|, no more]",
                "[let it take|give it|limit it to] {} steps",
                "it should take {} steps",
                "the number of steps is {}",
                "it takes {} steps",
            ),
        ),
        heldout=Said(
            nouns=("{} steps in total",),
            adverbs=("up to {} steps", "through {} steps"),
            sentences=("end it after {} steps", "{} steps are enough", "cap it at {} steps", "let it run {} steps", "the run should take {} steps"),
        ),
        weight=4.0,
    ),
    Option(
        "trainer.epochs",
        "epochs",
        training=Said(
            nouns=(
                "{} epochs",
                "epochs={}",
                "epochs {}",
                "{} [full |]passes over the data",
                "{} passes",
                "an epoch count of {}",
                "[at most|only|exactly] {} epochs",
            ),
            adverbs=(
                "for {} epochs",
                "over {} epochs",
                "during {} [full |]epochs",
                "within {} epochs",
                "for [only|just|exactly] {} epochs",
                "for {} passes",
                "in {} epochs",
            ),
            sentences=(
                "[do|run|make] {} epochs",
                "[run|train] [it |]for {} epochs",
                "go through the data {} times",
                "[make|do] {} passes",
                "set epochs to {}",
                "epochs is {}",
                "[finish|quit|stop] after {} epochs",
                "{} epochs [will do|suffice|is enough|, no more]",
                "[let it take|give it|limit it to] {} epochs",
                "it should take {} epochs",
                "the number of epochs is {}",
            ),
        ),
        heldout=Said(
            nouns=("{} epochs in total",),
            adverbs=("through {} full epochs", "across {} epochs"),
            sentences=("end it after {} epochs", "{} epochs are enough", "let it run {} epochs", "the run should take {} epochs"),
        ),
        weight=3.0,
    ),
    number(
        "trainer.batch_size",
        "batch",
        "batch size",
        training=Said(
            nouns=(
                "batches of {}",
                "batch_size={}",
                "bs {}",
                "bs={}",
                "{} [rows|examples] [per|a] [step|batch]",
                "a batch of {}",
                "{}-example batches",
                "{} rows in [a|each] batch",
                "steps of {} rows",
                "batch {}",
            ),
            adverbs=("in batches of {}", "{} rows at a time"),
            sentences=(
                "use batches of {}",
                "put {} rows in a batch",
                "group {} rows [in a batch|at a time]",
                "each step [sees|takes] {} rows",
                "[take|feed] {} rows [at once|a step|per step]",
            ),
        ),
        heldout=Said(nouns=("{} rows in every step", "{}-row batches"), sentences=("batch {} rows together", "every step should see {} rows")),
        weight=3.0,
    ),
    number(
        "seed",
        "seed",
        "seed",
        training=Said(
            nouns=("random seed {}", "rng seed {}", "a random seed of {}"),
            adverbs=("seeded with {}",),
            sentences=("seed it with {}", "use seed {}", "random seed is {}"),
        ),
        heldout=Said(nouns=("the random seed being {}",), sentences=("seed everything with {}",)),
        weight=2.0,
    ),
    Option(
        "name",
        "name",
        training=Said(
            nouns=("the name {}", "name {}", "name={}", "{} for a name", "{} as [a|the] name", "{} for its name", "the run name {}", "run name {}"),
            adverbs=(
                "named {}",
                "called {}",
                "under the name {}",
                "and name it {}",
                "with the [title|label] {}",
                "tagged {}",
                "under the [title|label] {}",
                "entitled {}",
                "and call it {}",
                "(name: {})",
            ),
            sentences=(
                "[call|name] [it|this|the run|this run] {}",
                "the run is called {}",
                "its name is {}",
                "name: {}",
                "use {} for the name",
                "set the name to {}",
                "i will call it {}",
                "[title|label|tag] it {}",
                "[give|let] it [have |]the [title|label|tag] {}",
                "its [title|label] is {}",
                "the run gets the name {}",
                "the name must be {}",
            ),
        ),
        heldout=Said(
            nouns=("{} as its name",),
            adverbs=("labelled {}", "titled {}"),
            sentences=("the run should be named {}", "give it the name {}", "let the name be {}"),
        ),
        weight=2.0,
    ),
)
