"""What attention over packed rows should be, in float64, and how far something is from it."""

import torch

from qllm_hf.attention import reference


def decoded(rows):
    """In float64 from codes, scales and zero points, without a rounding of their products."""
    part = rows.format.split(rows.rows)
    return part._replace(scale=part.scale.double()).decode(torch.float64)


def exact(request):
    """The attention that a request means, in float64; what sees nothing is 0."""
    keys, values = (reference.repeated(decoded(rows), request.group) for rows in (request.keys, request.values))
    scores = request.query.double() @ keys.transpose(-1, -2) * request.scale
    if request.softcap:
        scores = request.softcap * torch.tanh(scores / request.softcap)
    if request.causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    if request.mask is not None and request.mask.dtype == torch.bool:
        scores = scores.masked_fill(~request.mask, -torch.inf)
    elif request.mask is not None:
        scores = scores + request.mask.double()
    if request.sinks is not None:
        scores = torch.cat([scores, request.sinks.double().reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    weights = torch.softmax(scores, -1)[..., : keys.shape[-2]]
    return weights.nan_to_num(0.0) @ values


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()
