"""Storages: what identifies one, where its values came from, and copies of tensors that will be overwritten."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef

from xor_study.autopsy.finiteness import State, state_of, tensors_in
from xor_study.autopsy.operations import Operation
from xor_study.autopsy.sources import Source

_COPIED = 2**16
"""Elements of the largest tensor that is copied before an operation overwrites it."""

_MOST_ORIGINS = 1000


def storage_key(tensor: Tensor) -> int | None:
    """Return what identifies a tensor's storage among those that exist; None where the tensor has none."""
    storage = _storage(tensor)
    return storage._cdata if storage is not None else None


def reference_to(tensor: Tensor) -> StorageWeakRef | None:
    """Return a weak reference to a tensor's storage. While it exists, no other storage gets the same key."""
    storage = _storage(tensor)
    return StorageWeakRef(storage) if storage is not None else None  # type: ignore[no-untyped-call]


def _storage(tensor: Tensor) -> UntypedStorage | None:
    """Return the storage of a tensor's values; of a sparse tensor, that of the values it stores."""
    try:
        if tensor.layout == torch.sparse_coo:
            return tensor._values().untyped_storage()
        return (tensor if tensor.layout == torch.strided else tensor.values()).untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None


def covers_storage(tensor: Tensor) -> bool:
    """Return whether a tensor has as many bytes as its storage."""
    return tensor.numel() * tensor.itemsize == tensor.untyped_storage().nbytes()


def rest_is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor that has been written covers its storage, or all of the storage is finite."""
    if covers_storage(tensor):
        return True
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    return state_of(whole) == State.FINITE


def copies(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, Tensor | State]:
    """Return, by id, the old values of what an operation will overwrite: a copy, or the state of a large tensor."""
    old: dict[int, Tensor | State] = {}
    for name in operation.updated:
        for tensor in tensors_in(operation.argument(name, args, kwargs)):
            if tensor.is_floating_point() or tensor.is_complex():
                small = tensor.numel() <= _COPIED and tensor.layout == torch.strided and not tensor.is_meta
                old[id(tensor)] = tensor.clone() if small else state_of(tensor)
    return old


class Origin(NamedTuple):
    """Where the values of a storage came from, if no operation computed them.

    Attributes:
        name: as in `Event.origin`: "uninitialised" or "received".
        operation: what allocated or filled it, such as "aten.empty.memory_format".
        source: the line of that.
        reference: keeps the storage's key from being used again.
    """

    name: str
    operation: str
    source: Source | None
    reference: StorageWeakRef | None


class Origins:
    """The storages that were allocated without being filled, or filled by another process."""

    def __init__(self) -> None:
        self._known: dict[int, Origin] = {}

    @property
    def any(self) -> bool:
        """Whether anything is known."""
        return bool(self._known)

    def note(self, tensor: Tensor, name: str, operation: str, source: Source | None) -> None:
        """Note where a tensor's values come from."""
        key = storage_key(tensor)
        if key is not None:
            self._known.pop(key, None)
            self._known[key] = Origin(name, operation, source, reference_to(tensor))
            if len(self._known) > _MOST_ORIGINS:
                del self._known[next(iter(self._known))]

    def forget(self, tensor: Tensor) -> None:
        """Forget what is known of a tensor that an operation has written."""
        if (key := storage_key(tensor)) is not None:
            self._known.pop(key, None)

    def of(self, key: int | None) -> Origin | None:
        """Return what is known of a storage."""
        return self._known.get(key) if key is not None else None
