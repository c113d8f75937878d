"""The classifiers' work on apple/pfl-research, where it is installed."""

from __future__ import annotations

import importlib.util
import types
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedalign.contribution import State
from scripts.benchmark_clock import Stopwatch
from scripts.benchmark_task import Task
from scripts.benchmark_work import BATCH, RATE, Rows, Work


def installed() -> bool:
    """Return whether pfl can be imported."""
    return importlib.util.find_spec("pfl") is not None


def run(task: Task, clock: Stopwatch) -> State:
    """Run the work with pfl's federated averaging on its simulated backend, and return the last weights.

    It is timed as a whole: all rounds, without an evaluation.
    """
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    assert isinstance(task, Work)
    network, rows = _with_loss(task.build()), Rows(task)
    shards = [rows.shard(client.name) for client in rows.clients]
    users = [Dataset(raw_data=[shard.x, shard.y], user_id=str(place)) for place, shard in enumerate(shards)]
    order = iter([place for cohort in task.schedule() for place in cohort])
    np.random.seed(task.seed)  # noqa: NPY002, pfl draws from it
    data = FederatedDataset(make_dataset_fn=users.__getitem__, user_sampler=lambda: next(order))
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()])
    algorithm = FederatedAveraging()
    # Iteration 0 always evaluates, and the comparison is of training.
    algorithm._current_central_iteration = 1
    params = NNAlgorithmParams(
        central_num_iterations=task.rounds + 1,
        evaluation_frequency=10**6,
        train_cohort_size=task.cohort,
        val_cohort_size=0,
    )
    training = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH)
    clock.tick()
    algorithm.run(params, backend, model, training, callbacks=[_Ticks(clock)], send_metrics_to_platform=False)
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


class _Ticks:
    """Lets the stopwatch tick after every iteration, as one of pfl's callbacks."""

    def __init__(self, clock: Stopwatch) -> None:
        self._clock = clock

    def on_train_begin(self, *, model: Any) -> Any:
        from pfl.metrics import Metrics

        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        from pfl.metrics import Metrics

        self._clock.tick()
        return False, Metrics()

    def on_train_end(self, *, model: Any) -> None:
        """Do nothing."""


def _with_loss(network: nn.Module) -> nn.Module:
    """Give the network the two functions that pfl calls on it."""
    from pfl.metrics import Weighted

    def loss(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y)

    def metrics(self: nn.Module, x: Tensor, y: Tensor) -> Any:
        return {"loss": Weighted(F.cross_entropy(self(x), y, reduction="sum").item(), len(y))}

    network.__dict__.update(loss=types.MethodType(loss, network), metrics=types.MethodType(metrics, network))
    return network
