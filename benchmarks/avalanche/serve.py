"""Avalanche 0.6 on the same work, in its own process and environment: `python serve.py ROWS.npz [--device cuda]`.

Reads one JSON request a line, such as {"model": "mlp", "method": "replay", "batch_size": 64, "rows": 4096}, and answers
each with {"seconds": ...}: what an epoch of one experience took, without what comes before and after it (there the
memory and the Fisher are made). A first experience, not timed, fills the memory. `benchmarks/run.py step --avalanche`
takes turns with this process.

We help it where we can: rows as tensors in memory, no logger, one metric (the loss, which ours keeps as well).
"""

import argparse
import json
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

# The torchvision that pip finds beside a CPU build of torch lacks its compiled operators, which nothing here calls.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
warnings.simplefilter("ignore")

from avalanche.benchmarks import benchmark_from_datasets  # noqa: E402
from avalanche.benchmarks.utils.classification_dataset import (  # noqa: E402
    _make_taskaware_tensor_classification_dataset as tensor_dataset,
)
from avalanche.core import SupervisedPlugin  # noqa: E402
from avalanche.evaluation.metrics import loss_metrics  # noqa: E402
from avalanche.training import DER, EWC, Naive, Replay  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from models import CNN, MLP  # noqa: E402

MEMORY = 2_000
MODELS = {"mlp": MLP, "cnn": CNN}
METHODS = {
    "finetune": lambda size, settings: Naive(**settings),
    "replay": lambda size, settings: Replay(mem_size=MEMORY, **settings),
    "ewc": lambda size, settings: EWC(ewc_lambda=10.0, **settings),
    "derpp": lambda size, settings: DER(mem_size=MEMORY, batch_size_mem=size, alpha=1.0, beta=0.5, **settings),
}


class Clipped(SupervisedPlugin):
    """Clips the gradient, as the other loops do, and times the epoch as `turns.seconds` does."""

    def before_training_epoch(self, strategy, **_):
        self.clock = time.perf_counter if strategy.device.type == "cuda" else time.process_time
        self.started = self.clock()

    def after_backward(self, strategy, **_):
        nn.utils.clip_grad_norm_(strategy.model.parameters(), 1.0)

    def after_training_epoch(self, strategy, **_):
        if strategy.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds = self.clock() - self.started


def seconds(request, experiences, device):
    net, size, clipped = MODELS[request["model"]]().to(device), request["batch_size"], Clipped()
    settings = {
        "model": net,
        "optimizer": torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": size,
        "device": device,
        "plugins": [clipped],
        "evaluator": EvaluationPlugin(loss_metrics(epoch=True), loggers=[]),
    }
    strategy = METHODS[request["method"]](size, settings)
    for experience in experiences:
        strategy.train(experience)
    return clipped.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    arrays, answers = np.load(options.rows), sys.stdout
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    sys.stdout = sys.stderr  # the library prints, and answers go where nothing else does
    for request in map(json.loads, sys.stdin):
        parts = [slice(-MEMORY, None), slice(0, request["rows"])]
        datasets = [tensor_dataset(x[part], y[part], task_labels=0) for part in parts]
        experiences = benchmark_from_datasets(train=datasets).train_stream
        taken = seconds(request, experiences, torch.device(options.device))
        print(json.dumps({"seconds": taken}), file=answers, flush=True)


if __name__ == "__main__":
    main()
