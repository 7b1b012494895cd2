"""Visual question answering, in the three forms of its data sets; a file's form is recognised by its content.

- VQA's own: a questions file and an annotations file (VQAv2, OK-VQA, and the reference's conversions of TextVQA
  and VizWiz), matched by ``question_id``;
- TextVQA as published: ``{"data": [{question_id, image_id, question, answers: [text]}]}``;
- VizWiz as published: ``[{image, question, answers: [{answer, answer_confidence}], answer_type}]``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from msgspec import Meta

from flamingo_eval.core.benchmark import DataRules
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.paths import exists
from flamingo_eval.core.protocols import DataSet, References
from flamingo_eval.core.reading import inside_root, one_record, passed_over, read_json, record_field
from flamingo_eval.core.records import Annotation, Example, HumanAnswer, Id
from flamingo_eval.core.schema import Record, image_name


class VqaSplit(Record, frozen=True, kw_only=True):
    """The files of one split.

    Attributes:
        questions: the questions file.
        annotations: the annotations file; absent where answers are not public.
        published: the file as published, used if there is no questions file.
        images: template of an image's path, by its id.
    """

    questions: str | None = None
    annotations: str | None = None
    published: str | None = None
    images: str


class VqaFiles(Record, frozen=True, kw_only=True):
    """Options of a benchmark's ``[data]`` section.

    Attributes:
        answers: the least number of answers that a question may have.
        empty_answers: whether an annotator's answer may be empty.
        splits: a split's name -> its files.
    """

    answers: Annotated[int, Meta(ge=0)] = 1
    empty_answers: bool = False
    splits: dict[str, VqaSplit]


@dataclass(frozen=True)
class Question:
    """One question as a file has it; ``annotation`` is None where answers are not public."""

    id: Id
    image_id: Id
    text: str
    annotation: Annotation | None


@dataclass(frozen=True)
class SplitFiles:
    """The questions of one split, the files that they came from, and the form of these files."""

    questions: tuple[Question, ...]
    files: tuple[Path, ...]
    form: str


@dataclass(frozen=True)
class VqaLoader:
    """An example per question; its demonstration answer is the first annotator's."""

    def examples(self, rules: DataRules, root: Path, split: str) -> DataSet:
        """Questions of the training split and of ``split``."""
        train = _read_split(rules, root, rules.train)
        test = train if split == rules.train else _read_split(rules, root, split)
        if any(question.annotation is None for question in train.questions):
            raise DataError(f"{train.files[0]}: demonstrations need answers, and split {rules.train!r} has none")
        notes = [
            f"{name} questions from {part.files[0].name}, {part.form}"
            for name, part in ((rules.train, train), (split, test))
        ]
        return DataSet(
            _examples(rules, rules.train, train),
            _examples(rules, split, test),
            tuple(dict.fromkeys((*train.files, *test.files))),
            tuple(dict.fromkeys(notes)),
        )

    def references(self, rules: DataRules, root: Path, split: str) -> References:
        """What annotators answered, by question id; none where answers are not public."""
        part = _read_split(rules, root, split)
        by_id = {q.id: q.annotation for q in part.questions if q.annotation is not None}
        return References(by_id, part.files)


def _examples(rules: DataRules, split: str, part: SplitFiles) -> list[Example]:
    template = rules.read(VqaFiles).splits[split].images
    images: dict[Id, str] = {}  # there are several questions per image
    examples = []
    for question in part.questions:
        if question.image_id not in images:
            images[question.image_id] = _image(rules, template, question, part.files[0])
        fields = {"question": question.text}
        if question.annotation is not None:
            fields["answer"] = question.annotation.answers[0].text
        examples.append(Example(question.id, images[question.image_id], fields))
    return examples


def _image(rules: DataRules, template: str, question: Question, file: Path) -> str:
    """The path of a question's image. Raises DataError if its image id gives no valid path."""
    try:
        name = image_name(template, question.image_id)
    except ValueError as error:
        raise DataError(f"{file}: image id {question.image_id!r} does not fit {template!r}: {error}") from error
    return str(PurePosixPath(rules.folder, inside_root(name, f"{file}: question {question.id}")))


def _read_split(rules: DataRules, root: Path, split: str) -> SplitFiles:
    """The questions of a split. Raises DataError, naming file and record; UserError for a split without files."""
    options = rules.read(VqaFiles)
    if split not in options.splits:
        raise UserError(f"{rules.folder} has no files for split {split!r}; described are: {', '.join(options.splits)}")
    names, folder = options.splits[split], root / rules.folder
    candidates = [folder / name for name in (names.questions, names.published) if name]
    if not candidates:
        raise UserError(f"{rules.where}: splits.{split} names neither questions nor published")
    path = next((candidate for candidate in candidates if exists(candidate)), candidates[0])
    table = read_json(path)
    if isinstance(table, dict) and isinstance(table.get("questions"), list):
        annotations = folder / names.annotations if names.annotations else None
        questions, form = _vqa_form(path, table["questions"], annotations), "VQA format"
        files = (path,) if annotations is None else (path, annotations)
    elif isinstance(table, dict) and isinstance(table.get("data"), list):
        questions, form, files = _textvqa_form(path, table["data"]), "TextVQA as published", (path,)
    elif isinstance(table, list):
        questions, form, files = _vizwiz_form(path, table), "VizWiz as published", (path,)
    else:
        raise DataError(
            f'{path} is neither a VQA questions file ("questions"), nor TextVQA ("data") nor VizWiz (a list)'
        )
    found = _checked(path, questions, options.answers, options.empty_answers)
    return SplitFiles(tuple(found), files, form)


def _checked(path: Path, questions: Iterator[Question], answers: int, empty: bool) -> Iterator[Question]:
    """Refuses duplicate ids, too few answers, empty answers unless they are allowed, and an empty file."""
    seen: set[Id] = set()
    public = None
    for question in questions:
        with one_record():
            if question.id in seen:
                raise DataError(f"{path}: question {question.id} occurs twice")
            seen.add(question.id)
            public = question.annotation is not None if public is None else public
            if public != (question.annotation is not None):
                raise DataError(f"{path}: question {question.id} and others differ in whether they have answers at all")
            if question.annotation is not None:
                _check_answers(f"{path}: question {question.id}", question.annotation, answers, empty)
            yield question
    if not seen and not passed_over():
        raise DataError(f"{path} holds no questions")


def _check_answers(where: str, annotation: Annotation, count: int, empty: bool) -> None:
    """Raises DataError for too few answers, or for an empty one if that is not allowed."""
    if len(annotation.answers) < count:
        raise DataError(f"{where} has {len(annotation.answers)} answers, expected {count}")
    if not empty and any(not answer.text.strip() for answer in annotation.answers):
        raise DataError(
            f"{where} has an empty answer; "
            "if that is meant, set empty_answers = true in its benchmark's data section of flamingo-eval.toml"
        )


def _vqa_form(path: Path, rows: list[Any], annotations: Path | None) -> Iterator[Question]:
    by_id = {} if annotations is None else _annotations(annotations)
    asked: set[Id] = set()
    for number, row in enumerate(rows):
        where = f"{path}: questions[{number}]"
        with one_record():
            id = record_field(where, row, "question_id", int, str)
            annotation = by_id.get(id)
            asked.add(id)
            if annotations is not None and annotation is None:
                raise DataError(f"{annotations} has no annotation for question {id} of {path.name}")
            image_id, text = record_field(where, row, "image_id", int, str), record_field(where, row, "question", str)
            yield Question(id, image_id, text, annotation)
    unasked = [id for id in by_id if id not in asked]
    if unasked:
        raise DataError(f"{path} has no question for {len(unasked)} annotations of {annotations}, such as {unasked[0]}")


def _annotations(path: Path) -> dict[Id, Annotation]:
    table = read_json(path)
    rows = table.get("annotations") if isinstance(table, dict) else None
    if not isinstance(rows, list):
        raise DataError(f'{path} is not a VQA annotations file: it has no list "annotations"')
    by_id: dict[Id, Annotation] = {}
    for number, row in enumerate(rows):
        where = f"{path}: annotations[{number}]"
        with one_record():
            id = record_field(where, row, "question_id", int, str)
            if id in by_id:
                raise DataError(f"{path}: question {id} is annotated twice")
            by_id[id] = Annotation(
                tuple(_human(where, answer) for answer in record_field(where, row, "answers", list)),
                question_type=str(row.get("question_type", "other")),
                answer_type=str(row.get("answer_type", "other")),
            )
    return by_id


def _textvqa_form(path: Path, rows: list[Any]) -> Iterator[Question]:
    """As converted for the reference: answer i gets ``answer_id`` i + 1 and confidence "yes"."""
    for number, row in enumerate(rows):
        where = f"{path}: data[{number}]"
        with one_record():
            annotation = None
            if isinstance(row, dict) and "answers" in row:
                records = [
                    {"answer": text, "answer_id": i, "answer_confidence": "yes"}
                    for i, text in enumerate(record_field(where, row, "answers", list), start=1)
                ]
                annotation = Annotation(tuple(_human(where, record) for record in records))
            id, text = record_field(where, row, "question_id", int, str), record_field(where, row, "question", str)
            yield Question(id, record_field(where, row, "image_id", int, str), text, annotation)


def _vizwiz_form(path: Path, rows: list[Any]) -> Iterator[Question]:
    """As converted for the reference: a question's id is its row's number, its type is its answer's type."""
    for number, row in enumerate(rows):
        where = f"{path}: [{number}]"
        with one_record():
            image, text = record_field(where, row, "image", str), record_field(where, row, "question", str)
            annotation = None
            if "answers" in row:
                answers = tuple(_human(where, answer) for answer in record_field(where, row, "answers", list))
                kind = str(row.get("answer_type", "other"))
                annotation = Annotation(answers, question_type=kind, answer_type=kind)
            yield Question(number, image, text, annotation)


def _human(where: str, record: Any) -> HumanAnswer:
    """An annotator's answer; everything else in its record is one string, for rules that compare full records.

    There are millions of answers, and few are different, so equal texts are kept in memory once.
    """
    text = record_field(where, record, "answer", str)
    rest = sorted((key, repr(value)) for key, value in record.items() if key != "answer")
    return HumanAnswer(sys.intern(text), sys.intern(repr(rest)))


LOADER = VqaLoader()
