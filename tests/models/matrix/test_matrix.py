"""Every decoder of transformers, tiny: right in value and gradient against its own forward, or refused with a reason.

`make test` runs `CORE`, `make test-models` all of it.
"""

from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_LMS
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WITH_IMAGES

from raydpo.errors import ModelError
from raydpo.models.loading import load_tokenizer, quiet_libraries
from raydpo.models.source import resolve_model
from tests.models.matrix.configs import tiny_config
from tests.models.matrix.exports import adapter_gaps, export_gap
from tests.models.matrix.families import ADAPTED, ADAPTED_CORE, CORE, SPECIAL, VARIANTS
from tests.models.matrix.harness import Pairs, Subject, compare, own_logps, own_model, save_tiny, some_pairs
from tests.models.matrix.outcomes import EXPORT_DIFFERS, REFUSED, UNBUILDABLE, UNSHRUNK

TOLERANCE = 1e-4
EXPORT_TOLERANCE = 1e-5
FAMILIES = sorted((CAUSAL_LMS.keys() | WITH_IMAGES.keys()) - UNSHRUNK)
CASES = [*FAMILIES, *VARIANTS]
BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


def _params(names: list[str], core: frozenset[str] = CORE) -> list[object]:
    """Return the cases as parameters, those outside the core marked as the lane's own."""
    return [pytest.param(name, marks=() if name in core else pytest.mark.models) for name in names]


def make(case: str, folder: Path) -> str:
    """Write the tiny model of a case and return its model type."""
    quiet_libraries()
    model_type = case.partition("@")[0]
    save_tiny(tiny_config(model_type, **{**SPECIAL.get(model_type, {}), **VARIANTS.get(case, {})}), folder)
    return model_type


@pytest.fixture(scope="session")
def some() -> Pairs:
    """Return the pairs that all cases have in common."""
    return some_pairs()


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    """Return some tokenizer to write beside an export."""
    return load_tokenizer(resolve_model(str(tiny_model), None), trust_remote_code=False)


@pytest.mark.parametrize("case", _params([case for case in CASES if case not in REFUSED and case not in UNBUILDABLE]))
def test_values_and_gradients_are_those_of_the_models_own_forward(
    case: str, tmp_path: Path, some: Pairs, tokenizer: PreTrainedTokenizerBase
) -> None:
    model_type = make(case, tmp_path / "model")
    subject = Subject.at(tmp_path / "model")
    gaps = compare(model_type, tmp_path / "model", subject, some)
    assert max(gaps.values()) < TOLERANCE, gaps
    if case in EXPORT_DIFFERS:
        return
    gap = export_gap(model_type, tmp_path / "export", subject, some, tokenizer)
    assert gap < EXPORT_TOLERANCE, f"the export differs by {gap:.1e}"


@pytest.mark.parametrize("case", _params(ADAPTED, core=ADAPTED_CORE))
def test_an_adapter_starts_at_its_base_and_is_the_trained_one_once_loaded_and_merged(
    case: str, tmp_path: Path, some: Pairs, tokenizer: PreTrainedTokenizerBase
) -> None:
    model_type = make(case, tmp_path / "model")
    subject = Subject.at(tmp_path / "model")
    gaps = adapter_gaps(model_type, tmp_path / "model", tmp_path / "adapter", subject, some, tokenizer)
    assert max(gaps.values()) < TOLERANCE, gaps


@pytest.mark.models
@pytest.mark.parametrize("case", sorted(REFUSED))
def test_a_model_that_cannot_be_right_is_refused_with_its_reason(case: str, tmp_path: Path, some: Pairs) -> None:
    model_type = make(case, tmp_path / "model")
    with pytest.raises(ModelError, match=REFUSED[case]):
        compare(model_type, tmp_path / "model", Subject.at(tmp_path / "model"), some)


@pytest.mark.models
@pytest.mark.parametrize("case", sorted(UNBUILDABLE))
def test_what_transformers_cannot_compute_from_text_is_known(case: str, tmp_path: Path, some: Pairs) -> None:
    """Check the list of families without a tiny model here, so that none hides in it once it has one."""
    with pytest.raises(BUILD_ERRORS, match=UNBUILDABLE[case]), torch.no_grad():
        own_logps(own_model(make(case, tmp_path / "model"), tmp_path / "model"), some)


def test_the_tables_name_cases_of_the_matrix() -> None:
    assert CORE | set(ADAPTED) | REFUSED.keys() | UNBUILDABLE.keys() <= set(CASES)
    assert set(ADAPTED) >= ADAPTED_CORE
    assert not CORE & (REFUSED.keys() | UNBUILDABLE.keys())
