"""verify=parity: the loss and the gradient of the first step are those that TRL's trainer has for the same token ids and masks.

In fp32 with dropout off.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from typing import Any

import torch
from torch import Tensor

from largeforge.errors import InputError
from largeforge.proof.certificate import Certificate, alone
from largeforge.proof.invariance import changes_of
from largeforge.proof.peers import Peer, peer_of
from largeforge.proof.rig import distance, relative, take_steps
from largeforge.run import Run

ALLOWED = 1e-5
ROWS = 8
COLUMNS = ("what", "LargeForge", "peer", "relative difference", "allowed", "equal")


class _Kept:
    """What stood there before the first step: copies of the networks, and the step's one micro-batch."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, parts: Any) -> None:
        method = parts.method
        self.method, self.tokenizer = method, parts.model.tokenizer
        shaken(method, seed=self.seed)
        self.network = copy.deepcopy(method.network)
        other = getattr(method, "reference", None) or getattr(method, "teacher", None)
        if other is not None:
            self.second = copy.deepcopy(other.network)
            if hasattr(self.second, "merge_and_unload"):  # a model that came with an adapter: TRL looks for the head of a plain one
                self.second = self.second.merge_and_unload()
        else:  # the adapter switched off, which TRL would take for what the adapter held when it was handed over
            self.second = copy.deepcopy(method.network).unload() if hasattr(method, "reference") else None
        window = parts.trainer.window(parts.data.num_rows, seed=self.seed)
        (self.batch,) = next(iter(parts.data.train_steps(window)))
        self.device = parts.trainer.device
        tokens = getattr(self.batch, "tokens", self.batch)
        with torch.no_grad(), method.evaluating():
            self.logprob_N = method.head.logprobs(tokens).clone()


def prove(run: Run) -> None:
    """Compare the first step of the recipe, on at most 8 rows, with TRL's trainer.

    Raises:
        CheckFailed: per-token losses, the loss or the gradient differ by more than 1e-5.
        MissingExtra: TRL is not installed.
    """
    alone(run)
    changed = {**changes_of(run), **_comparable(run.config)}
    certificate = Certificate(
        "token ids and masks alike, the first step's losses and gradient are the peer's",
        COLUMNS,
        changed=changed,
        notes=[
            "Every weight that learns was moved by noise (0.02) first, so that no loss stands at its symmetric start.",
            "The gradient's difference is that of all parameters as one vector, relative to its length.",
        ],
    )
    kept = _Kept(run.config.seed)
    ours = take_steps(run, changed, before=kept)
    name = type(kept.method).__name__
    folder = run.folder / "trl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and its libraries' own
        peer = peer_of(name, config=kept.method.config, network=kept.network, second=kept.second, tokenizer=kept.tokenizer, folder=folder, device=kept.device)
        if peer is None:
            raise InputError(f"{name} has no trainer in TRL to be compared with.", next_step="verify=invariance or verify=resume")
        kept.network.train()
        theirs = peer.loss(kept.batch)
        kept.network.zero_grad()
        theirs.backward()
        gradient = {f"network.{key}": p.grad.detach().float().cpu() for key, p in kept.network.named_parameters() if p.grad is not None}
        tokens_apart = _per_token(kept, peer)
    shutil.rmtree(folder, ignore_errors=True)
    certificate.facts = {"peer": peer.name, "rows": changed["trainer.batch_size"], "device": kept.device, "precision": "fp32"}
    certificate.notes += [peer.differs] if peer.differs else []
    mean = float(kept.logprob_N.abs().mean())
    certificate.row("log p of each token (largest difference)", mean, mean, tokens_apart, f"{ALLOWED:g}", holds=tokens_apart <= ALLOWED)
    apart = relative(ours.losses[0], float(theirs.detach()))
    certificate.row("loss of the step", ours.losses[0], float(theirs.detach()), apart, f"{ALLOWED:g}", holds=apart <= ALLOWED)
    missing = {key: torch.zeros_like(value) for key, value in ours.gradient.items() if key not in gradient}  # what the peer does not move
    apart = distance(ours.gradient, gradient | missing)
    sizes = [float(sum(t.double().square().sum() for t in side.values()) ** 0.5) for side in (ours.gradient, gradient)]
    certificate.row("gradient of the step", *sizes, apart, f"{ALLOWED:g}", holds=apart <= ALLOWED)
    certificate.notes += _accumulated(kept, peer, float(theirs.detach()))
    certificate.conclude(run, title=f"Parity: {name} beside {peer.name}")


@torch.no_grad()
def shaken(method: Any, *, seed: int) -> None:
    """Move every weight that learns a little: at its start an adapter does nothing, a model is its own reference, and half of a loss would not be seen."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in method.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_((0.02 * noise).to(parameter.device, parameter.dtype))


def _comparable(config: Any) -> dict[str, Any]:
    """What of the recipe the peer does not have, changed to what both do; no quantized weights, one micro-batch."""
    method = config.method
    name = method.target.rpartition(".")[2]
    rows = min(ROWS, config.trainer.batch_size)
    changed: dict[str, Any] = {
        "trainer.max_steps": 1,
        "trainer.batch_size": rows,
        "trainer.micro_batch_size": rows,
        "data.packing": False,
        "data.num_workers": 0,
    }
    if not config.quant.target.endswith(".Unquantized"):
        changed["quant"] = "none"
    if name == "ORPO":
        changed["method.train_on"] = "all"
    if name == "DPO":
        changed |= {"method.reference_logprobs": "online", **({"method.label_smoothing": 0.0} if method.label_smoothing else {})}
    if name == "Distill":
        changed |= {"method.temperature": 1.0, "method.logits_weight": 1.0, "method.nll_weight": 0.0, "method.hidden.weight": 0.0}
        changed |= {"method.progressive.growth": "none", "method.on_policy.share": 0.0, "method.teacher_logits": "online"}
    return changed


@torch.no_grad()
def _per_token(kept: _Kept, peer: Peer) -> float:
    """The largest difference between our log-probabilities of single tokens and those of the whole network's logits, relative to their mean."""
    tokens = getattr(kept.batch, "tokens", kept.batch)
    network = peer.network
    network.eval()
    logits = network(input_ids=tokens.input_ids_BT, position_ids=tokens.position_ids_BT, use_cache=False).logits[:, :-1].float()
    chosen = logits.log_softmax(-1).gather(2, tokens.input_ids_BT[:, 1:, None]).squeeze(2)[tokens.supervised_BT[:, 1:]]
    return float((chosen - kept.logprob_N).abs().max() / chosen.abs().mean())


def _accumulated(kept: _Kept, peer: Peer, whole: float) -> list[str]:
    """What the peer's own accumulation makes of the same rows in two halves: its trainer averages the losses of micro-batches."""
    halves = _halves(kept.batch)
    if halves is None or peer.name in ("SFTTrainer", "GKDTrainer"):  # given the number of tokens of the step, these two divide by it
        return []
    with torch.no_grad():
        losses: list[Tensor] = [peer.loss(half) for half in halves]
    mean = float(torch.stack([loss.detach() for loss in losses]).mean())
    apart = relative(mean, whole)
    if apart <= ALLOWED:
        return [f"{peer.name} in two micro-batches: {mean:.7g}, the same as at once."]
    told = f"{peer.name} in two micro-batches: {mean:.7g}, {apart:.2g} away from its own {whole:.7g} at once."
    return [f"{told} Here a term is divided by the units of the whole step."]


def _halves(batch: Any) -> list[Any] | None:
    """A batch of answers in two; None for one that is too small, or of tokens."""
    from largeforge.batch import AnswerBatch, TokenBatch

    if not isinstance(batch, AnswerBatch) or batch.num_answers < 4:
        return None
    middle = batch.num_answers // 4 * 2

    def part(of: AnswerBatch, rows: slice) -> AnswerBatch:
        tokens = of.tokens
        numbers = torch.arange(of.num_answers, device=of.answer_N.device)[rows]
        mine = torch.isin(of.answer_N, numbers)
        cut = TokenBatch(tokens.input_ids_BT[rows], tokens.position_ids_BT[rows], tokens.supervised_BT[rows], num_examples=len(numbers), num_tokens=0)
        mismatched = None if of.mismatched is None else part(of.mismatched, rows)
        return AnswerBatch(cut, of.answer_N[mine] - int(numbers[0]), of.desirable_A[rows], mismatched)

    return [part(batch, slice(0, middle)), part(batch, slice(middle, None))]
