"""A network's forward as a CUDA graph: one launch in place of thousands, for each shape of its inputs.

SDXL's UNet, one H100: the 30 steps of a single tile with guidance take 1.0 s in place of 2.1, which is what the
host takes to launch them. Of a batch of 16 it is 1 %.

In place of `torch.cuda.make_graphed_callables`: that takes positional tensors alone (a UNet also takes None and
dictionaries) and one shape, hands out outputs that the next replay overwrites, and records in the mode in which a
CUDA call of any other thread, such as NCCL's watchdog, makes the recording fail. Around it the same keys, copies and
fallbacks would be needed.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from worker.engine.memory import is_out_of_memory

Forward = Callable[..., Any]
Record = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""Calls a function of fixed inputs; what plays it back, and the output that it then overwrites."""

_log = logging.getLogger(__name__)
_WARM_UP = 1  # calls before the recording: compilation, choice of kernels
_MOST = 24  # shapes; all recordings share one pool of memory, but each has inputs and an output of its own
_LARGEST = 8  # batch: more keep a GPU busy for longer than launches take, and to record them takes two more forwards each


def replay_forward(
    network: nn.Module, record: Record | None = None, describe: Callable[[], object | None] = lambda: ()
) -> None:
    """Replace `network.forward`, on a GPU, by replays of its recordings; weights may not be exchanged from then on.

    Large batches are computed as ever, going by the first tensor among the arguments.

    Args:
        record: for the test of what surrounds it, which has no GPU; then inputs of any device count.
        describe: what a recording depends on beside its inputs, hashable; None: this one is not to be recorded.
    """
    replay = _Replay(network.forward, record or Recorder(), describe, only_cuda=record is None)
    network.forward = replay  # pyright: ignore[reportAttributeAccessIssue]  # a callable in place of a method


class _Replay:
    def __init__(
        self, forward: Forward, record: Record, describe: Callable[[], object | None], *, only_cuda: bool
    ) -> None:
        self._forward, self._record, self._only_cuda = forward, record, only_cuda
        self._describe = describe
        self._recordings: dict[object, tuple[list[Tensor], Callable[[], None], Any]] = {}
        self._broken = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        beside = self._describe()
        if beside is None:
            return self._forward(*arguments, **options)
        leaves, form = tree_flatten((arguments, options))
        inputs = [each for each in leaves if isinstance(each, Tensor)]
        if inputs and inputs[0].dim() and len(inputs[0]) > _LARGEST:
            return self._forward(*arguments, **options)
        key = form, beside, *(_describe(each) for each in leaves)
        if key not in self._recordings and not self._try_to_record(key, leaves, form, inputs):
            return self._forward(*arguments, **options)
        fixed, play, output = self._recordings[key]
        for mine, given in zip(fixed, inputs, strict=True):
            mine.copy_(given)
        play()
        return tree_map(_copy, output)

    def _try_to_record(
        self, key: object, leaves: Sequence[Any], form: TreeSpec, inputs: Sequence[Tensor]
    ) -> bool:
        # What lies on the host would be frozen.
        fits = not self._only_cuda or all(each.is_cuda for each in inputs)
        if self._broken or not fits or len(self._recordings) >= _MOST:
            return False
        fixed = [each.clone() for each in inputs]
        waiting = iter(fixed)
        mine = [next(waiting) if isinstance(each, Tensor) else each for each in leaves]
        arguments, options = tree_unflatten(mine, form)
        try:
            play, output = self._record(lambda: self._forward(*arguments, **options))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._broken = True
            _log.warning("forwards are launched kernel by kernel, since they cannot be recorded: %s", error)
            return False
        self._recordings[key] = fixed, play, output
        return True


def _copy(leaf: object) -> object:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _describe(leaf: object) -> object:
    return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf


class Recorder:
    """Records CUDA graphs that share one pool of memory, on a stream of its own, after a warm-up there."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = call()
        return graph.replay, output
