"""Has schemathesis ask for what is there: of a random model's name it would learn 404, of fields that one engine lacks 400, and of little else."""

import os

import schemathesis

SERVED = os.environ["SERVED_MODEL"]
OURS = set(os.environ["SERVED_FIELDS"].split())
ROLES = {"system", "developer", "user", "assistant"}


@schemathesis.hook
def before_call(context, case, kwargs):
    """Name the served model; a request that fits the document keeps the fields that its engine has, few tokens, and turns of text."""
    body = case.body
    if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not 0 < len(body["model"]) <= 512:
        return
    body["model"] = SERVED
    if case.meta is None or not case.meta.generation.mode.is_positive or case.meta.phase.name.value != "fuzzing":
        return
    for name in set(body) - OURS:
        del body[name]
    body["max_tokens"] = min(body.get("max_tokens") or 20, 20)
    body["stream"] = len(str(body)) % 3 == 0
    for turn in body.get("messages", ()):
        turn["role"] = turn["role"] if turn["role"] in ROLES else "user"
        turn["content"] = turn.get("content") if isinstance(turn.get("content"), str) else "text"
        for name in set(turn) - {"role", "content"}:
            del turn[name]
