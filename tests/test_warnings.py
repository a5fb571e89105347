"""The warning filters of pyproject.toml are in force: pytest drops one that it cannot import, with a mere warning."""

import warnings

import pytest

from qllm_hf.errors import QllmWarning


def warn_from(module: str, category: type[Warning]) -> None:
    """Warns as if the code stood in that module."""
    warnings.warn_explicit("text", category, filename=f"{module}.py", lineno=1, module=module)


def test_our_own_warning_is_an_error():
    with pytest.raises(QllmWarning):
        warnings.warn("text", QllmWarning, stacklevel=1)


@pytest.mark.parametrize("module", ["qllm_hf", "qllm_hf.nn.linear"])
@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_deprecated_use_in_our_code_is_an_error(module, category):
    with pytest.raises(category):
        warn_from(module, category)


@pytest.mark.parametrize("module", ["torch.nn", "qllm_hf_other"])
def test_deprecated_use_elsewhere_is_not(module):
    with pytest.warns(DeprecationWarning):
        warn_from(module, DeprecationWarning)
