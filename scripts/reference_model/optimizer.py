"""Training in bfloat16 with float32 masters: Muon for the matrices inside, AdamW for embeddings and norms."""

from __future__ import annotations

import torch
from torch import nn

WEIGHT_DECAY = 0.05


class Optimizer:
    """Steps for a bfloat16 model whose exact weights are kept here, in float32.

    Raises:
        SystemExit: this torch has no Muon.
    """

    def __init__(self, model: nn.Module) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise SystemExit(f"torch {torch.__version__} has no torch.optim.Muon. Train with torch 2.9 or newer.")
        self.working = [p for p in model.parameters() if p.requires_grad]
        self.masters = [nn.Parameter(p.detach().float().clone()) for p in self.working]
        embedding = model.get_input_embeddings().weight
        inner = [m for p, m in zip(self.working, self.masters, strict=True) if p.ndim == 2 and p is not embedding]
        outer = [m for p, m in zip(self.working, self.masters, strict=True) if p.ndim != 2 or p is embedding]
        self.steppers = [
            torch.optim.Muon(inner, weight_decay=WEIGHT_DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(outer, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def step(self, learning_rate: float) -> None:
        """One step from the gradients of the model, which are used up."""
        for working, master in zip(self.working, self.masters, strict=True):
            master.grad = working.grad.float()
            working.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        for stepper in self.steppers:
            for group in stepper.param_groups:
                group["lr"] = learning_rate
            stepper.step()
        with torch.no_grad():
            for working, master in zip(self.working, self.masters, strict=True):
                working.copy_(master)

    def state_dict(self) -> dict[str, object]:
        """All that a training run needs to go on."""
        return {"masters": [m.detach() for m in self.masters], "steppers": [s.state_dict() for s in self.steppers]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Goes on from a `state_dict`."""
        with torch.no_grad():
            for working, master, saved in zip(self.working, self.masters, state["masters"], strict=True):
                master.copy_(saved)
                working.copy_(saved)
        for stepper, saved in zip(self.steppers, state["steppers"], strict=True):
            stepper.load_state_dict(saved)
