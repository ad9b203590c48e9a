"""Many steps: passes over the rows, until they are done or bring no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cltrain.batch import Batch
from cltrain.seeding import torch_generator
from cltrain.task import row_losses
from cltrain.train.checkpoint import Checkpoint, Checkpoints
from cltrain.train.engines.plain import Named
from cltrain.train.loader import Draw, Loader, hide_categories
from cltrain.train.pool import Pool
from cltrain.train.settings import Training
from cltrain.train.step import Stepper


@dataclass(frozen=True, kw_only=True)
class Passed:
    """rows counts every visit of a row, replayed ones too; loss is the mean over all steps and ranks; said (N, C)
    is what the model said of each row in the last pass, for a method that records it, NaN for rows kept aside."""

    steps: int
    rows: int
    replayed: int
    loss: float
    said: Tensor | None = None


def train_passes(
    stepper: Stepper,
    rows: Batch,
    exemplars: Batch | None,
    training: Training,
    seed: int,
    *,
    staying: Tensor | None = None,
    num_outputs: int = 0,
    ahead: bool = False,
    checkpoints: Checkpoints | None = None,
) -> Passed:
    """Train on all `rows` but those kept aside to stop early, and leave the model in eval mode.

    All ranks draw the same rows and each then takes its share, so that two ranks do what one does. Every use of chance
    in a pass has a generator of its own, so that a method which rehearses nothing takes the very steps of one that does
    not rehearse, and so that a pass can be taken up in its middle. `ahead` says that the rows are not on the device.
    `staying`: indices of rows that are rehearsed too, once they were learned (see `Pool`).
    """
    net, device = stepper.running.net, stepper.engine.device
    shuffled = torch.randperm(len(rows), generator=torch_generator(seed, "shuffle")).to(rows.target.device)
    kept_aside = training.validation_rows(len(rows))
    learned = shuffled[kept_aside:]
    best = Best.on(rows, shuffled[:kept_aside], stepper) if kept_aside else None
    batch_size, epochs = training.plan(len(learned))
    steps_per_pass = -(-len(learned) // batch_size)
    steps = visited = replayed = begin = skip = 0
    loss_sum = torch.zeros((), device=device)
    said: Tensor | None = None
    pool = Pool(exemplars, rows, staying, _order(learned, seed, 0), num_outputs)
    if checkpoints is not None and (saved := checkpoints.load()) is not None:
        begin, skip, steps, visited, replayed = saved.epoch, saved.step, saved.steps, saved.rows, saved.replayed
        loss_sum = saved.own["loss"].to(device)
        said = saved.tensors["said"].to(device) if "said" in saved.tensors else None
        _restore(stepper, saved, best)
        if pool.outputs is not None:
            pool.outputs.copy_(saved.tensors["pool"])
    for epoch in range(begin, epochs):
        stepper.running.module.train()
        if said is not None and not skip:
            if pool.outputs is not None:
                pool.outputs.copy_(_of_all_ranks(said, stepper)[pool.staying.to(device)])
            said = None
        seen = hide_categories(rows, training.unknown_rate, torch_generator(seed, "hide", epoch))
        old = pool.batch
        if old is not None:
            old = hide_categories(old, training.unknown_rate, torch_generator(seed, "hide exemplars", epoch))
        loader = Loader(
            seen,
            old,
            engine=stepper.engine,
            method=stepper.method,
            accumulate=training.accumulate,
            ahead=ahead,
            seed=seed,
        )
        every_draw = list(_draws(stepper, learned, pool, steps_per_pass, seed, epoch))
        draws, before = every_draw[skip:], sum(len(draw.new) for draw in every_draw[:skip])
        batches = loader.batches(draws)
        for step, draw in enumerate(draws, skip + 1):
            stepper.running.set_learning_rate(training.learning_rate_at(steps / (epochs * steps_per_pass)))
            loss_sum += stepper.step(next(batches))  # held by nothing here: the next batch takes its place in memory
            if stepper.said:
                said = _recorded(said, stepper, draw.new.to(device), len(rows))
                if not epoch and pool.outputs is not None:
                    pool.record(before, _of_all_ranks(said[draw.new.to(device)], stepper))
            before += len(draw.new)
            rehearsed = 0 if draw.old is None else len(draw.old)
            visited += len(draw.new) + rehearsed
            replayed += rehearsed
            steps += 1
            if checkpoints is not None and checkpoints.due(steps):
                numbers = {"epoch": epoch, "step": step, "steps": steps, "rows": visited, "replayed": replayed}
                checkpoints.save(_checkpoint(stepper, best, loss_sum, said, pool, numbers))
        skip = 0
        if best is not None and best.passes_since() >= training.passes_without_gain(epochs):
            break
    if best is not None:
        best.restore()
    net.eval()
    return Passed(
        steps=steps,
        rows=visited,
        replayed=replayed,
        loss=stepper.engine.sum(loss_sum).item() / steps,
        said=None if said is None else _of_all_ranks(said, stepper),
    )


def _recorded(said: Tensor | None, stepper: Stepper, index: Tensor, rows: int) -> Tensor:
    """`said` with what the last step said of this rank's share of the rows at `index`."""
    found = stepper.said[0] if len(stepper.said) == 1 else torch.cat(stepper.said)
    if said is None:
        said = found.new_full((rows, found.shape[1]), torch.nan)
    mine = stepper.engine.shard(index)
    return said.index_copy_(0, mine, found) if len(mine) else said


def _of_all_ranks(said: Tensor, stepper: Stepper) -> Tensor:
    if stepper.engine.world == 1:
        return said
    known = stepper.engine.sum((~said.isnan()).float())
    return torch.where(known > 0, stepper.engine.sum(said.nan_to_num()) / known, torch.nan)


def _draws(stepper: Stepper, learned: Tensor, pool: Pool, steps: int, seed: int, epoch: int) -> Iterator[Draw]:
    """The batches of one pass."""
    device = learned.device
    order = _order(learned, seed, epoch)
    rehearse = torch_generator(seed, "rehearse", epoch)
    known = [0, 0]  # rows that were learned before the step ahead of this one, and before this one
    for number, new in enumerate(order.tensor_split(steps)):
        remembered = pool.size(epoch, known[0])
        known = [known[1], known[1] + len(new)]
        old = stepper.method.rehearse(len(new), remembered, rehearse) if remembered else None
        yield Draw(new, None if old is None else old.to(device), (epoch, number))


def _order(learned: Tensor, seed: int, epoch: int) -> Tensor:
    generator = torch_generator(seed, "shuffle", epoch)
    return learned[torch.randperm(len(learned), generator=generator).to(learned.device)]


@dataclass
class Best:
    """The best state of a model so far, by its loss on validation rows, of which `share` is this rank's part. The
    loss is summed over the ranks, so that all of them decide alike."""

    stepper: Stepper
    share: Batch
    loss: float = float("inf")
    passes: int = 0
    weights: Named = field(default_factory=dict)
    optimizer: Named = field(default_factory=dict)

    @classmethod
    def on(cls, rows: Batch, index: Tensor, stepper: Stepper) -> Best:
        mine = stepper.engine.shard(index)
        share = rows.take(mine if len(mine) else index[:1])
        if not len(mine):  # every rank must run the model, which may be in pieces
            share.weight.zero_()
        return cls(stepper, share.to(stepper.engine.device))

    def passes_since(self) -> int:
        """Look at the model as it is now; how many looks in a row were no better than the best one?"""
        running, engine = self.stepper.running, self.stepper.engine
        running.net.eval()
        total = torch.zeros((), device=engine.device)
        with torch.no_grad():
            for part in self.share.chunks():
                losses = row_losses(self.stepper.task, running.module(**part.inputs), part.target)
                total += (losses * part.weight).sum()
        loss = engine.sum(total).item()
        if loss < self.loss:
            self.loss, self.passes = loss, 0
            self.weights, self.optimizer = running.weights(), running.optimizer_tensors()
        else:
            self.passes += 1
        return self.passes

    def restore(self) -> None:
        if self.weights:
            self.stepper.running.load_weights(self.weights)
            self.stepper.running.load_optimizer(self.optimizer)


def _checkpoint(
    stepper: Stepper, best: Best | None, loss_sum: Tensor, said: Tensor | None, pool: Pool, numbers: dict[str, int]
) -> Checkpoint:
    running = stepper.running
    if said is not None:
        said = _of_all_ranks(said, stepper)
    kinds = {"weights": running.weights(), "optimizer": running.optimizer_tensors()}
    kinds |= {f"method/{slot}": running.gather(pieces) for slot, pieces in sorted(stepper.state.tensors.items())}
    if best is not None and best.weights:
        kinds |= {"best_weights": best.weights, "best_optimizer": best.optimizer}
    tensors = {f"{kind}/{name}": value for kind, named in kinds.items() for name, value in named.items()}
    return Checkpoint(
        **numbers,
        best_loss=best.loss if best and best.weights else None,
        best_passes=best.passes if best else 0,
        tensors=tensors
        | ({} if said is None else {"said": said.cpu()})
        | ({} if pool.outputs is None else {"pool": pool.outputs.cpu()}),
        own={"loss": loss_sum.cpu()} | {f"buffer/{n}": b.detach().cpu() for n, b in running.net.named_buffers()},
    )


def _restore(stepper: Stepper, saved: Checkpoint, best: Best | None) -> None:
    stepper.running.load_weights(saved.of("weights"))
    for name, buffer in stepper.running.net.named_buffers():  # each rank has its own, as of a batch norm
        buffer.copy_(saved.own[f"buffer/{name}"])
    stepper.running.load_optimizer(saved.of("optimizer"))
    slots: dict[str, Named] = {}
    for key, value in saved.of("method").items():
        slot, name = key.split("/", 1)
        slots.setdefault(slot, {})[name] = value
    stepper.set_tensors({slot: stepper.running.scatter(named) for slot, named in slots.items()})
    if best is not None and saved.best_loss is not None:
        best.loss, best.passes = saved.best_loss, saved.best_passes
        best.weights, best.optimizer = saved.of("best_weights"), saved.of("best_optimizer")
