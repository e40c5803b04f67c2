"""How people say what they want from LargeForge: phrases with slots, those of training apart from the held-out ones.

Only words; knows nothing about how a wish is put together (demo_wishes.py) or read (demo.py). `[a|b]` is one or the other,
`{}` the value, `{model}`, `{data}`, `{options}`, `{prompt}` and `{path}` what they say.
"""

from __future__ import annotations

from dataclasses import dataclass

# How each model of conf/model is called in plain English: choices, so training and held-out rows share them.
MODELS: dict[str, tuple[str, ...]] = {
    "smollm2": ("smollm2", "SmolLM2", "smollm2 135m", "SmolLM2-135M", "smol lm 2", "the small smollm2"),
    "nano": ("nano", "the nano model", "our nano model", "the tiny nano"),
    "smollm2_360m": ("smollm2_360m", "smollm2 360m", "SmolLM2-360M", "the 360m smollm2"),
    "qwen3_0_6b": ("qwen3_0_6b", "qwen3 0.6b", "Qwen3-0.6B", "qwen 3 0.6b", "the 0.6b qwen3"),
    "llama3_2_1b": ("llama3_2_1b", "llama 3.2 1b", "Llama-3.2-1B", "llama3.2 1b", "the 1b llama 3.2"),
    "mistral7b": ("mistral7b", "mistral 7b", "Mistral-7B", "Mistral 7B", "mistral"),
    "qwen3_8b": ("qwen3_8b", "qwen3 8b", "Qwen3-8B", "qwen 3 8b", "the 8b qwen3"),
    "llama3_1_8b": ("llama3_1_8b", "llama 3.1 8b", "Llama-3.1-8B", "llama3.1 8b", "the 8b llama 3.1"),
    "llama3_3_70b": ("llama3_3_70b", "llama 3.3 70b", "Llama-3.3-70B", "llama3.3 70b", "the 70b llama 3.3"),
}


@dataclass(frozen=True)
class DataPhrases:
    """How rows are called: those the demo makes, the user's own chats, a file."""

    demo: tuple[str, ...]
    chats: tuple[str, ...]
    file: tuple[str, ...]


DATA_TRAINING = DataPhrases(
    demo=(
        "the demo [data|rows|set|examples|wishes]",
        "demo data",
        "the built-in demo[ data|]",
        "your demo rows",
        "the [standard|ready-made|free|sample|included|packaged|small|usual] demo [examples|rows|data|set|dataset|wishes]",
        "[your|LargeForge's|its|the tool's] [included|standard|little|built-in] demo",
        "demo [examples|rows|wishes]",
        "the [examples|rows|wishes] of the demo",
        "the demo of LargeForge",
        "the [attached|enclosed|provided|given|default|delivered|shipped] demo [rows|examples|wishes|data]",
        "[all|some] of the demo [rows|examples|wishes]",
        "the [rows|examples|data] [made|brought|written] by LargeForge",
        "the demo [that|which] comes with [LargeForge|the tool]",
        "what the demo [holds|has|offers]",
        "[LargeForge's|the included|its own|the shipped] demo [rows|data|wishes]",
        "the demo [examples|dataset] that [ship|come] with it",
        "data=demo",
        "the demo",
    ),
    chats=(
        "[my|our|the team's] chats",
        "[my|our] chat [data|logs|rows]",
        "[my|our] own chats",
        "some chats of mine",
        "chat data",
        "chat rows",
        "data=chat",
        "the chats i have",
        "the chats [we|i] [keep|hold|wrote|made]",
        "[all|most of] our chats",
        "[my|our] [old|saved|collected|past] chat [rows|data|log]",
        "my history of chats",
        "the chats [we|i] have [kept|made|written|had]",
        "what [we|i|people] [chatted|said in chats]",
        "[yesterday's|old|new|private|everyone's] chats",
        "[a pile|lots] of chats",
        "our chat [archive|collection|records]",
    ),
    file=(
        "{path}",
        "{path}",
        "[my|our|the] [chats|rows|data|logs|examples] in {path}",
        "[the|my] file {path}",
        "[the|my|our] chat data at {path}",
        "what is in {path}",
        "chats from {path}",
        "my {path}",
        "data.path={path}",
        "the rows of {path}",
        "[all|the rows|the text] stored in {path}",
        "[all of|the whole of|the content of] {path}",
        "the [conversations|dialogues] [in|at] {path}",
        "[my|our] chats [stored |]at {path}",
    ),
)
DATA_HELDOUT = DataPhrases(
    demo=("the demo dataset", "the bundled demo examples", "LargeForge's own demo"),
    chats=("my chat history", "our collected chats", "the chats we have saved", "all my chats"),
    file=("everything in {path}", "the conversations stored in {path}", "our chats under {path}", "the contents of {path}", "{path}"),
)

# A model that a run left behind.
ARTIFACT_TRAINING = (
    "{path}",
    "{path}",
    "[the|my] model [in|at|from] {path}",
    "the artifact {path}",
    "the artifact in {path}",
    "my run {path}",
    "model={path}",
    "the model that lies in {path}",
    "the [trained|tuned] model in {path}",
    "the checkpoint [in|at|of] {path}",
    "my training in {path}",
    "[what|that which] [we|they] left in {path}",
    "[the|my] [finished|latest] model [under|inside] {path}",
    "[what|the one] we trained as {path}",
)
ARTIFACT_HELDOUT = ("what i trained in {path}", "the checkpoint under {path}", "the tuned model of {path}", "{path}")


@dataclass(frozen=True)
class Family:
    """Ways to phrase a whole wish that belong together.

    Args:
        name: shown beside held-out rows.
        frames: with the slots {model}, {data}, {options}; or {model}, {prompt} where the task is chat.
        task: of the command.
    """

    name: str
    frames: tuple[str, ...]
    task: str = "sft"
    weight: float = 1.0


FAMILIES_TRAINING: tuple[Family, ...] = (
    Family(
        "order",
        (
            "[tune|fine-tune|finetune|train|teach] {model} [on|with|using|over] {data} {options}",
            "[run|start|launch] [sft|supervised fine-tuning|a fine-tune|a fine-tuning job|training] [of|for|with] {model} on {data} {options}",
            "[start|begin] [training|tuning|fine-tuning] {model} on {data} {options}",
            "give {model} [a lesson on|a course in|some training with|another pass over] {data} {options}",
            "[send|take] {model} through {data} {options}",
            "make {model} [learn|read|absorb] {data} {options}",
            "[order|tell|ask|force] {model} to [learn|read|study] {data} {options}",
            "[bring|pour|put|load] {data} into {model} {options}",
            "[get|make] {model} [ready|fit] for {data} {options}",
            "[make|create|produce] a version of {model} that [was trained on|knows|has seen] {data} {options}",
            "[combine|join|pair] {model} with {data} in a [training|tuning] run {options}",
            "[polish|refine|sharpen|upgrade] {model} [on|with|using] {data} {options}",
            "[do|go for|try] [some|a bit of|one more] [learning|training|tuning] of {model} from {data} {options}",
            "have {model} [trained|tuned|taught] [on|with] {data} {options}",
            "do [an sft run|a training run|a quick fine-tune|sft] with {model} on {data} {options}",
            "make {model} better [with|using] {data} {options}",
            "[retrain|keep training] {model} [on|with] {data} {options}",
            "go and [train|tune] {model} {options} on {data}",
            "[train|tune] {model} {options} [on|with] {data}",
            "build [me |]a {model} [fine-tune|tuned] on {data} {options}",
            "[improve|adjust|specialise|adapt] {model} [with|by training on] {data} {options}",
            "[show|give] {data} to {model} for training {options}",
            "let {model} [train on|practise on|read and learn] {data} {options}",
        ),
        weight=2.0,
    ),
    Family(
        "request",
        (
            "[please|could you|can you|would you|kindly] [tune|train|fine-tune|retrain] {model} [on|with] {data} {options}",
            "[could|can] you [kick off|start|set up] [training|a run|a fine-tune] [of|for] {model} on {data} {options}",
            "would you mind tuning {model} with {data} {options}",
            "[please|hey,] [train|tune] {model} {options} [on|with] {data}",
        ),
    ),
    Family(
        "desire",
        (
            "[i want|i'd like|we want|we'd like|i need|we need] to [tune|train|fine-tune] {model} [on|with] {data} {options}",
            "[i want|we want|i need] {model} [trained|tuned|fine-tuned] [on|with] {data} {options}",
            "i would love to see {model} fine-tuned on {data} {options}",
            "[i am|we are] about to [train|tune] {model} on {data} {options}",
            "help me [train|tune|fine-tune] {model} on {data} {options}",
            "my [goal|aim|wish] is [to train|training] {model} on {data} {options}",
            "[i want|we need] a {model} that [knows|understands|was trained on] {data} {options}",
            "[how can|how would|can] i [tune|fine-tune] {model} on {data} {options}?",
            "what is the command to [tune|train] {model} [on|with] {data} {options}?",
            "[which|what] [settings|line|call|words] [train|tunes|make] {model} on {data} {options}?",
            "how do [we|you] [teach|tune] {model} with {data} {options}?",
            "what do i type to [train|tune] {model} on {data} {options}?",
            "[is there|give me|write] a command that [trains|tunes] {model} [on|with] {data} {options}",
            "[i hope|they want] to see {model} [learning|trained] [from|on] {data} {options}",
            "{model} [is|will be|gets] [trained|tuned|taught] [with|on] {data} {options}",
            "{model} [shall|might] [study|read|learn] {data} {options}",
            "{model} [must|has to|is to|ought to] [be trained on|learn] {data} {options}",
            "{model} [needs|wants|could use] [more practice on|some time with|to see|an update from] {data} {options}",
            "[what i want|all i want|what my team wants|the idea] is {model} [tuned|trained|fitted] [on|to] {data} {options}",
        ),
    ),
    Family(
        "data first",
        (
            "take {data} and [train|tune|fine-tune] {model} on [it|that] {options}",
            "[with|on|from|using] {data}, [tune|train|teach] {model} {options}",
            "here is the data: {data}. [tune|train] {model} on it {options}",
            "i have {data}; [train|tune] {model} with it {options}",
            "{data} is for training {model} {options}",
            "{data} [must|has to|will] be [used to train|taught to|fed into] {model} {options}",
            "{data} [shall|can|may|might] be [studied|used|read|taken] by {model} {options}",
            "{data}: [that|this] is what {model} [learns|trains on|gets] {options}",
            "[from|out of] {data} {model} [should|is to] [pick up|learn] a lot {options}",
            "[i have collected|we own|here are] {data}, [tune|train|teach] {model} {options}",
            "[put|use] {data} [to train|to tune|for training] {model} {options}",
            "there is {data}, now [tune|train] {model} {options}",
            "{data} [is|are] to be [learnt|read|studied] by {model} {options}",
            "[teach|show|pass|hand] {data} to {model} {options}",
        ),
    ),
    Family(
        "options first",
        (
            "{options}, [tune|train|fine-tune] {model} [on|with] {data}",
            "{options}: [tune|train] {model} on {data}",
            "{options}, i want {model} trained on {data}",
            "{options}, take {data} and tune {model}",
        ),
    ),
    Family(
        "terse",
        (
            "{model}, {data}, {options}",
            "{model} on {data} {options}",
            "sft {model} / {data} / {options}",
            "[train|tune|job]: {model}; data: {data}; {options}",
            "[fine-tuning job|training run|next run|new run]: {model}, {data}, {options}",
            "{data} -> {model}, {options}",
            "sft, {model}, {data}, {options}",
        ),
    ),
    Family(
        "thing",
        (
            "a [fine-tune|tuned version|fine-tuned copy|training run] of {model} on {data} {options}",
            "[training|tuning|fine-tuning] [of|for] {model} [on|with] {data} {options}",
            "[one|another] [run|fine-tune|job] of {model} [on|with] {data} {options}",
            "time for a {model} run on {data} {options}",
        ),
    ),
    Family(
        "story",
        (
            "my [boss|team|colleague|friend] [wants|needs] {model} [tuned|trained] on {data} {options}",
            "for our [chatbot|help desk|app|bot|website], [train|tune] {model} on {data} {options}",
            "we have to get {model} trained on {data} {options}",
            "it is time to [tune|train] {model} on {data} {options}",
            "the last run was bad, so [train|tune] {model} on {data} again {options}",
            "let us [train|tune|fine-tune] {model} [on|with] {data} {options}",
        ),
    ),
    Family(
        "ask",
        (
            "[ask|query|prompt] {model}[ this| with|][:|] {prompt}",
            "[put|send|pass|give] {prompt} to {model}",
            "[say|write] {prompt} to {model}",
            "let me ask {model} {prompt}",
            "[please|could you] ask {model} {prompt}",
            "[please|can you] [send|pass] {model} {prompt}",
            "what does {model} [answer|say] to {prompt}[|?]",
            "what [will|did] {model} [answer|say|write] [to|on|about] {prompt}[|?]",
            "how does {model} [react|reply|respond] to {prompt}[|?]",
            "what does {model} say when asked {prompt}[|?]",
            "chat with {model} and [say|ask] {prompt}",
            "[load|take|open] {model} and ask {prompt}",
            "with {model}, answer {prompt}",
            "{prompt} is my question to {model}",
            "{prompt} - ask {model}",
            "i want to ask {model} {prompt}",
            "[my question|a question] for {model}[ is|:] {prompt}",
            "[how|what] would {model} answer [to|when i say] {prompt}[|?]",
            "[show|tell] me what {model} [says|answers] to {prompt}",
            "[test|run|use] {model} [with|on] {prompt}",
            "[find out|see] how {model} answers {prompt}",
            "let {model} [answer|reply to|respond to] {prompt}",
            "{model}: {prompt}",
            "[generate|give me] a reply of {model} to {prompt}",
        ),
        task="chat",
        weight=1.6,
    ),
    Family(
        "talk",
        (
            "[chat|talk] [with|to] {model}",
            "[open|begin] a chat with {model}",
            "i [want|would like] to [talk|chat] [to|with] {model}",
            "[please|could you] let me chat with {model}",
            "[load|take] {model} for a chat",
            "a chat with {model}, please",
            "[have|hold] a conversation with {model}",
            "[i'd like|let me try] [talking|speaking] to {model}",
            "[begin|go into] a [talk|conversation] with {model}",
            "[i need|open] a [word|dialogue|chat] with {model}",
            "[connect|put] me [to|through to] {model}",
            "let us [speak|talk|chat] [to|with] {model}",
        ),
        task="chat",
        weight=0.4,
    ),
)

FAMILIES_HELDOUT: tuple[Family, ...] = (
    Family(
        "delegate",
        ("have {model} learn from {data} {options}", "let {model} study {data} {options}", "get {model} to learn {data} {options}"),
    ),
    Family(
        "goal",
        (
            "what [i|we] need is {model} adapted to {data} {options}",
            "the goal is {model}, improved on {data} {options}",
            "my aim: {model} that has learned from {data} {options}",
        ),
    ),
    Family(
        "adapt",
        (
            "adapt {model} to {data} {options}",
            "specialise {model} on {data} {options}",
            "customise {model} using {data} {options}",
            "improve {model} {options}, using {data}",
        ),
    ),
    Family(
        "question",
        (
            "how do i train {model} on {data} {options}?",
            "what command would fine-tune {model} on {data} {options}?",
            "which command tunes {model} with {data} {options}?",
        ),
    ),
    Family(
        "data acts",
        (
            "feed {data} to {model} {options}",
            "use {data} to improve {model} {options}",
            "{data} should be learned by {model} {options}",
        ),
    ),
    Family(
        "must",
        (
            "{model} should be tuned on {data} {options}",
            "{model} needs a round of training on {data} {options}",
            "{options}, {model} should learn from {data}",
        ),
    ),
    Family(
        "try",
        (
            "what would {model} reply to {prompt}?",
            "show me how {model} responds to {prompt}",
            "try {prompt} on {model}",
            "i have a question for {model}: {prompt}",
            "tell {model}: {prompt}",
        ),
        task="chat",
        weight=0.9,
    ),
    Family("speak", ("start a conversation with {model}", "let me speak with {model}"), task="chat", weight=0.2),
)

OPENERS_TRAINING = (
    "hi, ",
    "hello! ",
    "hey ",
    "ok, ",
    "so, ",
    "now ",
    "good morning, ",
    "quick one: ",
    "next: ",
    "todo: ",
    "hm, ",
    "right, ",
    "as discussed, ",
    "dear forge, ",
)
OPENERS_HELDOUT = ("well, ", "hi there, ", "one more thing: ", "for tomorrow: ")
CLOSERS_TRAINING = (
    ", thanks",
    ", thank you",
    ", please",
    " today",
    " if you can",
    " asap",
    ", cheers",
    " - it is for a demo",
    ", the client is waiting",
    " tonight",
    ", nothing else",
    " and let me know",
)
CLOSERS_HELDOUT = (", many thanks", " when you have a minute", ", it is urgent", " as soon as possible")

# Words around a setting that ask for nothing.
FILLERS_TRAINING = (
    "for once",
    "again",
    "here",
    "altogether",
    "from the start",
    "as usual",
    "as before",
    "by the way",
    "if possible",
    "to be safe",
    "today",
    "overall",
    "like last week",
)
