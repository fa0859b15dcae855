"""Where images come from: every form gives the same image, and what cannot be read is a bad row with its reason."""

import base64
import io
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydpo.blocks.block import TokenizedBlock
from raydpo.data.dialects.columns import ColumnMapping
from raydpo.data.images.loading import no_images
from raydpo.errors import DataError
from tests.data.images.models import Case, image, row
from tests.data.images.processors import TEMPLATES, picture


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path / "case", "qwen2_vl")


def png(number: int = 0) -> bytes:
    stream = io.BytesIO()
    picture(number).save(stream, "png")
    return stream.getvalue()


def in_part(**source: Any) -> dict[str, Any]:
    return row([{"type": "image", **source}, {"type": "text", "text": "What?"}])


def test_one_picture_has_one_digest_whatever_it_comes_from(case: Case) -> None:
    path, text = str(case.folder / "a.png"), base64.b64encode(png()).decode()
    with fsspec.open("memory://pictures/a.png", "wb") as stream:
        stream.write(png())
    data_url = f"data:image/png;base64,{text}"
    whole = [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]}]
    rows = [
        row("What?", images=["a.png"]),
        row("What?", image="a.png"),
        row("What?", images=[path]),
        row("What?", images=[f"file://{path}"]),
        row("What?", images=["memory://pictures/a.png"]),
        row("What?", images=[data_url]),
        row("What?", images=[text]),
        row("What?", images=[{"bytes": None, "path": "a.png"}]),
        row("<image>What?", images=["./pictures/../a.png"]),
        image(None, "What?", images=["a.png"]),
        in_part(image="a.png"),
        in_part(url=f"file://{path}"),
        in_part(path=path),
        in_part(base64=text),
        in_part(image={"path": "a.png"}),
        in_part(source={"type": "base64", "media_type": "image/png", "data": text}),
        row([{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": "What?"}]),
        row([{"type": "input_image", "image_url": data_url}, {"type": "input_text", "text": "What?"}]),
        {**row("What?"), "prompt": [{"role": "user", "content": "What?", "images": ["a.png"]}]},
        {"chosen": [*whole, *row("")["chosen"]], "rejected": [*whole, *row("")["rejected"]]},
        {
            "conversations": [{"from": "human", "value": "<image>What?"}],
            "chosen": {"from": "gpt", "value": "A cat."},
            "rejected": {"from": "gpt", "value": "A dog!"},
            "images": ["a.png"],
        },
    ]
    openai = {
        "input": {"messages": row([{"type": "image_url", "image_url": {"url": data_url}}, "What?"])["prompt"]},
        "preferred_output": row("")["chosen"],
        "non_preferred_output": row("")["rejected"],
    }
    pairs = [*case.pairs(rows), *case.pairs([openai])]
    assert len(pairs) == len(rows) + 1
    assert len({(pair.images, pair.prompt_ids.tobytes(), pair.chosen_ids.tobytes()) for pair in pairs}) == 1
    assert len(pairs[0].images[0]) == 64
    (other,) = case.pairs([row("What?", images=["b.png"])])
    assert other.images != pairs[0].images


KINDS_OF_COLUMNS = {
    "bytes": pa.array([png(), None], pa.binary()),
    "list of bytes": pa.array([[png()], []], pa.list_(pa.large_binary())),
    "datasets' image": pa.array(
        [{"bytes": png(), "path": "gone.png"}, None], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    ),
    "datasets' images": pa.array(
        [[{"bytes": png(), "path": None}], []], pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    ),
}


@pytest.mark.parametrize("kind", KINDS_OF_COLUMNS)
@pytest.mark.parametrize("column", ["image", "photo"])
def test_columns_of_parquet_hold_images(case: Case, kind: str, column: str) -> None:
    texts = {name: [row("What?")[name]] * 2 for name in ("prompt", "chosen", "rejected")}
    path = case.folder / "rows.parquet"
    pq.write_table(pa.table({**texts, column: KINDS_OF_COLUMNS[kind]}), path)
    mapping = ColumnMapping.parse({"images": column} if column == "photo" else {})
    outcome = case.outcome(path, mapping=mapping)
    assert not outcome.bad_reasons, case.reasons()
    assert outcome.block is not None
    block = TokenizedBlock(outcome.block)
    (expected,) = case.pairs([row("What?", images=["a.png"])])
    assert [block.pair(i).images for i in range(2)] == [expected.images, ()]
    assert block.pair(0).prompt_ids.tolist() == expected.prompt_ids.tolist()


def test_a_folder_of_datasets_holds_images(case: Case) -> None:
    features = datasets.Features(
        {**datasets.Dataset.from_list([row("What?")]).features, "images": datasets.List(datasets.Image())}
    )
    saved = datasets.Dataset.from_list([row("What?", images=[picture(0)])], features=features)
    saved.save_to_disk(str(case.folder / "saved"))
    outcome = case.outcome(case.folder / "saved")
    assert outcome.block is not None, case.reasons()
    (expected,) = case.pairs([row("What?", images=["a.png"])])
    assert TokenizedBlock(outcome.block).pair(0).images == expected.images


def test_pictures_are_rgb_and_turned_as_their_exif_says(case: Case) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (16, 20), dtype=np.uint8)
    Image.fromarray(gray).save(case.folder / "gray.png")
    Image.fromarray(np.stack([gray] * 3, axis=-1)).save(case.folder / "rgb.png")
    Image.fromarray(np.stack([gray] * 3, axis=-1)).rotate(90, expand=True).save(
        case.folder / "turned.png", exif=_orientation(6)
    )
    rows = [row("What?", images=[name]) for name in ("gray.png", "rgb.png", "turned.png")]
    assert len({pair.images for pair in case.pairs(rows)}) == 1


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


BAD = {
    "fewer images than places": (image(None, None, images=["a.png"]), "images do not match: the prompt has 2 places"),
    "more images than places": (image(None, images=["a.png", "b.png"]), "images do not match: the prompt has 1 places"),
    "fewer marks": (row("<image> or not", images=["a.png", "b.png"]), "images do not match: the prompt has 1 times"),
    "a place without a column": (image(None, "What?"), "images do not match: the prompt has 1 places"),
    "the model's token without an image": (row("<|image_pad|> What?"), "images do not match: the row has the image"),
    "the model's token in a completion": (
        row("What?", ("A <|image_pad|>.", "A dog."), images=["a.png"]),
        "images do not match: ",
    ),
    "no user": (
        {**row("What?", images=["a.png"]), "prompt": [{"role": "system", "content": "s"}]},
        "images do not match: the prompt has no user message",
    ),
    "an image in a completion": (
        {**row("What?"), "chosen": [{"role": "assistant", "content": [{"type": "image", "image": "a.png"}, "A"]}]},
        "image in a completion: chosen holds an image",
    ),
    "no file": (row("What?", images=["gone.png"]), "image not found: 'gone.png'; looked for "),
    "no URL": (row("What?", images=["nowhere://x/a.png"]), "image cannot be read: 'nowhere://x/a.png'"),
    "no picture": (row("What?", images=["rows.jsonl"]), "broken image: 'rows.jsonl'"),
    "cut off": (
        row("What?", images=["data:image/png;base64," + base64.b64encode(png()[:300]).decode()]),
        "broken image: an image given as a data: URL (300 bytes)",
    ),
    "no base64": (row("What?", images=["data:image/png;base64,%%"]), "broken image: 'data:image/png;base64,%%'"[:13]),
    "a number": (row("What?", images=[5]), "wrong type: an image in column 'images' is a number"),
    "an empty object": (row("What?", image={"path": ""}), "wrong type: an image in column 'image' is an object"),
    "two columns": (row("What?", image="a.png", images=["b.png"]), "two columns of images"),
    "text and image in one part": (
        row([{"type": "text", "text": "What?", "image": "a.png"}]),
        "two parts in one: a part of type 'text'",
    ),
}


def test_bad_rows_have_a_reason_and_stop_nothing(case: Case) -> None:
    rows = [row("What?", images=["a.png"]), *(bad for bad, _ in BAD.values())]
    outcome = case.outcome(case.write(rows))
    assert outcome.block is not None
    assert outcome.block.pairs == 1
    reasons = case.reasons()
    assert len(reasons) == len(BAD)
    for (name, (_, expected)), reason in zip(BAD.items(), reasons, strict=True):
        assert reason.startswith(expected), name


def test_a_picture_of_too_many_pixels_is_a_bad_row(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    case.outcome(case.write([row("What?", images=["a.png"]), row("No picture")]))
    assert case.reasons()[0].startswith("broken image: 'a.png': Image size (320 pixels) exceeds limit")


def test_images_for_a_model_that_takes_none_are_never_dropped(case: Case) -> None:
    rows = [row("What?", images=["a.png"]), in_part(image="a.png")]
    with pytest.raises(DataError, match=r"rows.jsonl can be tokenized: .* takes no images: its folder has neither"):
        case.outcome(case.write(rows), images=no_images("m"))
    outcome = case.outcome(case.write([*rows, row("No picture")]), images=no_images("m"))
    assert outcome.bad_reasons == {"no image processor": 2}
    assert outcome.block is not None
    assert outcome.block.pairs == 1


def test_a_template_without_images_makes_bad_rows_even_where_words_may_be_dropped(case: Case) -> None:
    text_only = TEMPLATES["qwen2_vl"].replace("<|vision_start|><|image_pad|><|vision_end|>", "")
    example = row("What?", images=["a.png"], chat_template_kwargs={"chat_template": text_only})
    outcome = case.outcome(case.write([example, row("No picture")]))
    assert outcome.bad_reasons == {"images do not match": 1}


def test_text_without_a_place_for_its_image_goes_through_the_chat_template(case: Case) -> None:
    texts = {"prompt": "What?", "chosen": "A cat.", "rejected": "A dog!"}
    rows = [{**texts, "image": "a.png"}, row("What?", images=["a.png"]), {**texts, "prompt": "What? <image>"}]
    rows[2]["image"] = "a.png"
    first, second, third = case.pairs(rows)
    assert first.prompt_ids.tolist() == second.prompt_ids.tolist()
    assert first.chosen_ids.tolist() == second.chosen_ids.tolist()
    assert case.tokenizer.decode(third.prompt_ids).split("What? ")[1].startswith("<|vision_start|><|image_pad|>")


def test_text_without_a_place_and_without_a_template_is_a_bad_row(case: Case) -> None:
    (case.folder / "model" / "chat_template.jinja").unlink()
    rows = [
        {"prompt": prompt, "chosen": " a", "rejected": " b", "image": "a.png"} for prompt in ("<|image_pad|>?", "?")
    ]
    assert case.outcome(case.write(rows)).bad_reasons == {"images do not match": 1}
    assert "0 times '<|image_pad|>' for 1 images; write it where each image stands" in case.reasons()[0]
