"""What a coder's step is by the papers, written a second time: float64, latents chosen one at a time, no panscope code.

Smooth parts are differentiated by autograd with the choice of latents held fixed; what goes through a jump (JumpReLU's
threshold) is summed by loops. Formulas: Gao et al. 2024 (TopK, Multi-TopK, AuxK), Llama Scope Eq. 5 (ranking by decoder
norm), Bussmann et al. 2024 and 2025 (BatchTopK, Matryoshka), Rajamanoharan et al. 2024a and 2024b (Gated, JumpReLU),
Anthropic April 2024 (ReLU), Gemma Scope 2 (target L0).

Shape letters: B rows, D input width, E output width, F latents.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Expected:
    """Loss, codes, output and the gradient of every learned parameter."""

    loss: Tensor
    codes: Tensor
    y_hat: Tensor
    gradients: dict[str, Tensor]


class Oracle:
    """One step on rows x, y whose squared errors count `weights`, with `dead` latents, at `sparsity`."""

    def __init__(self, coder: Any, rows: Any, sparsity: float) -> None:
        self.c, self.sparsity = coder.config, sparsity
        self.x, self.y, self.weights, self.dead = rows.x, rows.y, rows.weights, rows.dead
        self.w = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in coder.named_parameters()}
        centred = self.x - self.w["b_dec"] if self.c.pre_encoder_bias else self.x
        self.directions = torch.einsum("bd,fd->bf", centred, self.w["W_enc"])
        self.pre = self.directions + self.w["b_enc"]
        self.norms = (self.w["W_dec"] ** 2).sum(dim=1).sqrt()

    def expected(self) -> Expected:
        codes = self.codes(self.sparsity)
        codes.retain_grad()
        loss = self.nested(codes)
        y_hat = self.decoded(codes)
        loss = loss + self.extra(codes, y_hat)
        loss.backward()
        gradients = {name: p.grad for name, p in self.w.items() if p.grad is not None}
        if self.c.architecture == "jumprelu":
            active = (codes != 0).double().detach()
            loss = loss + self.sparsity * self.l0_penalty(active)
            assert codes.grad is not None
            gradients["threshold"] = self.threshold_gradient(codes.grad, self.l0_slope(active))
        return Expected(loss.detach(), codes.detach(), y_hat.detach(), gradients)

    def codes(self, k: float) -> Tensor:
        """[B, F]."""
        if self.c.architecture == "gated":
            magnitude = torch.exp(self.w["r_mag"]) * self.directions + self.w["b_mag"]
            return (self.pre.detach() > 0) * magnitude.clamp(min=0)
        return self.pre * self.kept(k)

    def kept(self, k: float) -> Tensor:
        """[B, F] of 0 and 1: which latents are active."""
        values = self.pre.tolist()
        places = [(b, f) for b, row in enumerate(values) for f in range(len(row)) if row[f] > 0]
        if self.c.architecture == "jumprelu":
            places = [(b, f) for b, f in places if values[b][f] > self.w["threshold"].tolist()[f]]
        if self.c.architecture in ("topk", "batchtopk", "matryoshka"):
            norms = self.norms.tolist() if self.c.selection == "decoder_norm" else [1.0] * len(self.norms)
            ranked = sorted(places, key=lambda place: -values[place[0]][place[1]] * norms[place[1]])
            k = max(1, round(k))
            if self.c.architecture == "topk":
                places = [p for b in range(len(values)) for p in [q for q in ranked if q[0] == b][:k]]
            else:
                places = ranked[: k * len(values)]
        chosen = torch.zeros_like(self.pre)
        for b, f in places:
            chosen[b, f] = 1
        return chosen.detach()

    def base(self) -> Tensor:
        """[B, E] what is there without any latent."""
        base = self.w["b_dec"].expand_as(self.y)
        return base + torch.einsum("bd,ed->be", self.x, self.w["W_skip"]) if self.c.skip else base

    def decoded(self, codes: Tensor) -> Tensor:
        return torch.einsum("bf,fe->be", codes, self.w["W_dec"]) + self.base()

    def error(self, y_hat: Tensor, y: Tensor) -> Tensor:
        return sum((self.weights[b] * ((y_hat[b] - y[b]) ** 2).sum() for b in range(len(y))), torch.zeros(()).double())

    def nested(self, codes: Tensor) -> Tensor:
        """The mean over prefixes of what the first latents alone leave."""
        ends = [round(share * self.c.width) for share in self.c.prefixes] or [self.c.width]
        before = [torch.arange(self.c.width) < end for end in ends]
        return sum((self.error(self.decoded(codes * first), self.y) for first in before), torch.zeros(())) / len(ends)

    def extra(self, codes: Tensor, y_hat: Tensor) -> Tensor:
        """What the architecture adds to the reconstruction loss, but for a penalty without a slope."""
        if self.c.architecture == "relu":
            return self.sparsity * (codes * self.norms).sum() / len(codes)
        if self.c.architecture == "gated":
            gate = self.pre.clamp(min=0)
            frozen = torch.einsum("bf,fe->be", gate, self.w["W_dec"].detach()) + self.base().detach()
            return self.sparsity * (gate * self.norms.detach()).sum() / len(codes) + self.error(frozen, self.y)
        total = torch.zeros(()).double()
        if getattr(self.c, "multi_coefficient", 0):
            more = self.pre * self.kept(max(1, round(self.sparsity)) * self.c.multi_factor)
            total = total + self.c.multi_coefficient * self.nested(more)
        if getattr(self.c, "auxk_coefficient", 0):
            total = total + self.c.auxk_coefficient * self.auxk((self.y - y_hat).detach())
        return total

    def auxk(self, e: Tensor) -> Tensor:
        """The share of the error e [B, E] that the largest dead latents leave."""
        woken = (self.pre * self.kept(self.sparsity) > 0).any(dim=0)
        dead = [f for f in range(self.c.width) if self.dead[f] and not woken[f]]
        if not dead:
            return torch.zeros(()).double()
        nearest = min((2**n for n in range(12)), key=lambda power: (abs(power - self.c.d_in / 2), -power))
        chosen = torch.zeros_like(self.pre)
        for b, row in enumerate(self.pre.tolist()):
            for f in sorted(dead, key=lambda f: -row[f])[: self.c.auxk or nearest]:
                chosen[b, f] = float(row[f] > 0)
        found = torch.einsum("bf,fe->be", self.pre * chosen.detach(), self.w["W_dec"])
        if self.c.auxk_bias:
            found, mean = found + self.w["b_dec"], e.mean(dim=1, keepdim=True).expand_as(e)
        else:
            mean = torch.einsum("b,be->e", self.weights, e).expand_as(e) / self.weights.sum()
        return self.error(found, e) / self.error(mean, e)

    def l0_penalty(self, active: Tensor) -> Tensor:
        """[] of active [B, F]."""
        rows, total = active.sum(dim=1), active.sum() / len(active)
        if self.c.target_l0 is None:
            penalty = total
        elif self.c.target_of == "batch":
            penalty = self.c.target_factor * (total / self.c.target_l0 - 1) ** 2
        else:
            penalty = self.c.target_factor * ((rows / self.c.target_l0 - 1) ** 2).sum() / len(active)
        often = active.sum(dim=0) / len(active)
        return penalty + self.c.frequency_penalty * (often**2).sum() / self.c.frequency_limit

    def l0_slope(self, active: Tensor) -> Tensor:
        """[B, F] what one more active latent would add to the penalty."""
        rows, count, target = active.sum(dim=1), len(active), self.c.target_l0
        slope = torch.zeros_like(active)
        for b in range(count):
            for f in range(active.shape[1]):
                if target is None:
                    slope[b, f] = 1 / count
                else:
                    measured = rows[b] if self.c.target_of == "row" else rows.sum() / count
                    slope[b, f] = self.c.target_factor * 2 * (measured / target - 1) / target / count
                often = active[:, f].sum() / count
                slope[b, f] += self.c.frequency_penalty * 2 * often / self.c.frequency_limit / count
        return slope

    def threshold_gradient(self, for_codes: Tensor, slope: Tensor) -> Tensor:
        """[F] the straight-through estimate."""
        eps, total = self.c.bandwidth, torch.zeros(self.c.width).double()
        for b, row in enumerate(self.pre.tolist()):
            for f, t in enumerate(self.w["threshold"].tolist()):
                if abs(row[f] - t) < eps / 2:
                    total[f] += -t / eps * for_codes[b, f] - self.sparsity * slope[b, f] / eps
        return total
