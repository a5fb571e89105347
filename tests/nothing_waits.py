"""A check that nothing waits for the device, on tensors that are on the CPU."""

from torch.utils._python_dispatch import TorchDispatchMode


class NothingWaits(TorchDispatchMode):
    """Fails where the host needs to know what is in a tensor. `Tensor.tolist` on the CPU passes it by."""

    waits = ("_local_scalar_dense", "item", "nonzero", "unique", "masked_select", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(wait in name for wait in self.waits):
            raise RuntimeError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))
