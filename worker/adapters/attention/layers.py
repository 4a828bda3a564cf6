"""The self-attention and joint attention of a network, made to write keys down and to read others' beside their own.

Nothing of diffusers is replaced: its processors, LoRAs and IP-Adapters run as they are, and where they call PyTorch's
attention, what a layer is told to do is done in its place. A layer that is told nothing is not touched.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from worker.adapters.attention.blocks import BlockKind, Order, find_attention
from worker.adapters.attention.orders import Orders, Page, Reading, Slot
from worker.adapters.attention.rotary import turn
from worker.adapters.attention.softmax import Source, attend, balance
from worker.adapters.attention.style import Statistics, Turn, measure, restyle
from worker.adapters.errors import UnsupportedConditionError


class Layer:
    """One attention, and the pages of keys and values that it has written.

    Args:
        shown: in each slot, what is read there.
        written: the page that is being written on.
        pages: a CUDA graph reads where it was recorded, so each page keeps its place in memory.
    """

    def __init__(self, orders: Orders, order: Order) -> None:
        self.orders, self.order = orders, order
        self.shown: dict[Slot, tuple[Tensor, ...]] = {}
        self.written: tuple[Tensor, ...] = ()
        self.pages: dict[Page, tuple[Tensor, ...]] = {}

    def write(self, *values: Tensor) -> None:
        """Keys and values, or what else is kept of a forward, on the open page."""
        if self.orders.mode == "open" and self.orders.opens is not None:
            self.pages[self.orders.opens] = tuple(_make_place(value) for value in values)
        elif self.orders.mode in ("write", "write style"):
            for place, value in zip(self.written, values, strict=True):
                place.copy_(value)

    def image(self, length: int) -> slice:
        """Where the image's tokens lie among so many."""
        tokens = self.orders.tokens
        if self.order == "all" or tokens == length:
            return slice(0, length)
        return slice(0, tokens) if self.order == "image_first" else slice(length - tokens, length)


def _make_place(value: Tensor) -> Tensor:
    """A copy, contiguous, and to the compiler as long as a batch may be."""
    place = value.clone(memory_format=torch.contiguous_format)
    torch._dynamo.maybe_mark_dynamic(place, 0)  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
    return place


class _Softmax(TorchFunctionMode):
    """Stands in for PyTorch's attention inside of one layer."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self._layer = layer

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is Tensor.unflatten:
            return _unflatten(*args, **options)
        if func is not F.scaled_dot_product_attention:
            return func(*args, **options)
        named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | options
        return self._attend(named["query"], named["key"], named["value"], named.get("attn_mask"))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        layer, orders = self._layer, self._layer.orders
        image = layer.image(query.shape[2])
        layer.write(
            keys[:, :, image], values[:, :, image], *self._measure(query[:, :, image], keys[:, :, image])
        )
        reads = orders.list_reads()
        if not reads:
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        if orders.mode == "read style" and orders.style is not None:
            query, keys = (
                _take_style(layer, orders.style, each, image, of) for of, each in enumerate((query, keys))
            )
        sources = [_read(layer, slot, reading, query[:, :, image]) for slot, reading in reads]
        return attend(query, keys, values, mask, sources, image)

    def _measure(self, query: Tensor, keys: Tensor) -> list[Tensor]:
        """Of a style picture: mean and deviation of the queries, then of the keys."""
        orders = self._layer.orders
        if not orders.keeps_statistics:
            return []
        found = [measure(each, orders.own) for each in (query, keys)]
        return [part for each in found for part in (each.mean, each.deviation)]


def _take_style(layer: Layer, reading: Reading, states: Tensor, image: slice, of: int) -> Tensor:
    """Queries (`of` is 0) or keys (1), those of the image with the style picture's statistics."""
    _, _, *kept = layer.shown["style"]
    mean, deviation = (each.index_select(0, reading.rows) for each in kept[2 * of : 2 * of + 2])
    assert reading.likeness is not None
    styled = restyle(states[:, :, image], layer.orders.own, Statistics(mean, deviation), reading.likeness)
    if image.stop - image.start == states.shape[2]:
        return styled
    return torch.cat([states[:, :, : image.start], styled, states[:, :, image.stop :]], dim=2)


def _unflatten(tensor: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """The same, which inside of a mode the compiler cannot follow."""
    before, after = tensor.shape[:dim], tensor.shape[dim:][1:]
    return tensor.reshape(*before, *sizes, *after)


def _read(layer: Layer, slot: Slot, reading: Reading, query: Tensor) -> Source:
    keys, values = (each.index_select(0, reading.rows) for each in layer.shown[slot][:2])
    turned = query if reading.turn is None else turn(query, *reading.turn)
    return Source(turned, keys, values, reading.log_strength + balance(query.shape[2], keys.shape[2]))


class _Linear(TorchFunctionMode):
    """Stands in for the first product of Sana's linear attention: Σ v kᵀ over all keys, to which others' is added."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self._layer, self._done = layer, False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.matmul or self._done or result.dim() != 4:
            return result
        self._done = True
        return self._add(result, args[1].shape[2])

    def _add(self, summed: Tensor, tokens: int) -> Tensor:
        """Of values with a one below them, (B, H, D + 1, D): the ones add the denominator up."""
        layer, orders = self._layer, self._layer.orders
        layer.write(summed / tokens)  # per token, so that a view's size does not count
        for slot, reading in orders.list_reads():
            others = layer.shown[slot][0].index_select(0, reading.rows)
            summed = summed + others * (reading.log_strength.exp() * tokens)
        return summed


class AttentionLayers:
    """All attention of a network that tiles can share; put in once, before its blocks are compiled."""

    def __init__(self, network: nn.Module, *, compiled: bool = False, recorded: bool = False) -> None:
        """
        Args:
            compiled: whether its blocks are: then what opens a page may differ in the last bit.
            recorded: whether CUDA graphs are made of its forwards, which read old pages too.
        """
        self._orders, self._compiled, self._recorded = Orders(), compiled, recorded
        self._fixed: dict[object, Tensor] = {}
        found = list(find_attention(network))
        self._layers = [_put_in(attention, kind, self._orders) for attention, kind in found]
        # Linear attention sums keys up before there are any to give a style's statistics to.
        self.take_styles = bool(found) and not any(kind.linear for _, kind in found)
        self.conductor: object = None  # whose keys are shown

    def __len__(self) -> int:
        return len(self._layers)

    def describe(self) -> object | None:
        """What a recorded forward depends on beside its arguments; None: it is not to be recorded."""
        orders, (layer, *_) = self._orders, self._layers
        if orders.mode == "open":
            return None
        places = layer.written if orders.mode in ("write", "write style") else ()
        reads = tuple((slot, layer.shown[slot][0].shape) for slot, _ in orders.list_reads())
        return orders.mode, tuple(place.shape for place in places), reads

    def write(
        self, slot: Slot, crops: Tensor, tokens: int, predict: Callable[[], object], own: Turn | None = None
    ) -> None:
        """Show in a slot the keys that a prediction of these crops (N, C, h, w) makes; of a style, statistics too.

        Args:
            own: by which places tokens of a style are turned.

        Raises:
            UnsupportedConditionError: a layer computes its attention in another way.
        """
        page = slot, crops.shape
        if not self._recorded:
            self._forget(slot, page)
        is_new = any(page not in layer.pages for layer in self._layers)
        if is_new:
            with (
                self._ordered(Orders("open", tokens, page, own=own)),
                torch.compiler.set_stance("force_eager"),
            ):
                predict()
            self._require_opened(page)
        for layer in self._layers:
            layer.written = layer.shown[slot] = layer.pages[page]
        if not is_new or self._compiled or self._recorded:
            mode = "write style" if slot == "style" else "write"
            with self._ordered(Orders(mode, tokens, own=own)):
                predict()

    def _require_opened(self, page: Page) -> None:
        silent = sum(page not in layer.pages for layer in self._layers)
        if silent:
            raise UnsupportedConditionError(
                f"advanced.attention: {silent} of {len(self._layers)} attention layers do not call PyTorch's attention "
                "here, as with another backend in DIFFUSERS_ATTN_BACKEND; allowed: off"
            )

    def _forget(self, slot: Slot, kept: Page) -> None:
        for layer in self._layers:
            layer.shown.pop(slot, None)
            for page in [each for each in layer.pages if each[0] == slot and each != kept]:
                del layer.pages[page]

    def read(
        self, tokens: int, conductor: Reading, neighbourhood: Reading | None, predict: Callable[[], Tensor]
    ) -> Tensor:
        """A prediction that also attends to what is shown."""
        mode = "read" if neighbourhood is None else "read both"
        with self._ordered(Orders(mode, tokens, None, conductor, neighbourhood)):
            return predict()

    def read_style(
        self, tokens: int, style: Reading, own: Turn | None, predict: Callable[[], Tensor]
    ) -> Tensor:
        """A prediction that attends to a style picture, with its statistics."""
        with self._ordered(Orders("read style", tokens, style=style, own=own)):
            return predict()

    @contextmanager
    def _ordered(self, given: Orders) -> Generator[None]:
        """Every layer has the same orders, in the same place: compiled code asks there."""
        self._orders.take(given)
        try:
            yield
        finally:
            self._orders.take(Orders())

    def place(self, name: str, value: Tensor) -> Tensor:
        """A copy of a value where others of its name and shape lay, for CUDA graphs; its first axis may vary."""
        key = name, value.shape, value.dtype
        if key not in self._fixed:
            self._fixed[key] = torch.empty_like(value)
            if value.dim():
                torch._dynamo.maybe_mark_dynamic(self._fixed[key], 0)  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
        self._fixed[key].copy_(value, non_blocking=True)
        return self._fixed[key]


def _put_in(attention: nn.Module, kind: BlockKind, orders: Orders) -> Layer:
    """By its class, not by a forward of its own: the compiler takes blocks whose parts have one for different code."""
    layer = Layer(orders, kind.order)
    setattr(attention, _LAYER, layer)
    attention.__class__ = _derive(type(attention), _Linear if kind.linear else _Softmax)
    return layer


_LAYER = "sharing_layer"


@cache
def _derive(kind: type[nn.Module], mode: type[_Softmax] | type[_Linear]) -> type[nn.Module]:
    """A class of attention, of the same name, that does what its layer is told to."""
    plain: Callable[..., Any] = kind.forward  # the compiler follows functions, and no methods of a class

    def forward(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        layer: Layer = getattr(self, _LAYER)
        if layer.orders.mode == "idle":
            return plain(self, *arguments, **options)
        with mode(layer):
            return plain(self, *arguments, **options)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
