"""What a policy can be told: the instructions of its specification, and free text where there is an encoder.

An instruction's embedding is looked up; any other sentence is embedded once and remembered. A sentence that is far from
every instruction is refused. That is a help, not a guard: an embedding tells what a sentence is about, not whether
it says "do" or "do not", and "stop" is no instruction but ``safe_stop``.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from chunkcast.language.text_encoder import MAX_TEXT_LENGTH, TextEncoder, TextEncoderError, find_encoder
from chunkcast.server.errors import BundleError, ObservationRejected
from chunkcast.v1 import policy_pb2 as pb

REMEMBERED = 1024
"""Sentences; the one that was not said for longest is forgotten."""
SHOWN_LENGTH = 128
"""Of a text in a message."""
SHOWN_INSTRUCTIONS = 8

log = structlog.get_logger()

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Told:
    """How a text was understood.

    Attributes:
        instruction: the specification's own, or the one that a free text is nearest to: what health is judged by.
        embedding: float32 ``[E]``, of the text itself.
        similarity: its cosine with the nearest instruction or paraphrase; 1 for an instruction.
    """

    instruction: str
    embedding: FloatArray
    similarity: float = 1.0


class KnownInstructions:
    """The instructions of one version of a policy. Safe for several threads.

    Args:
        spec: its specification.
        encoder: of the specification's SHA-256, or ``None``: then only the instructions themselves are understood.
    """

    def __init__(self, spec: pb.PolicySpec, encoder: TextEncoder | None = None) -> None:
        self._policy, self._encoder = spec.name, encoder
        self._missing_encoder = spec.text_encoder.name if encoder is None else ""
        self._min_similarity = spec.text_encoder.min_similarity
        self._texts = [instruction.text for instruction in spec.instructions]
        self._known: dict[str, Told] = {}
        for instruction in spec.instructions:
            told = Told(instruction.text, np.array(instruction.embedding, np.float32))
            self._known[instruction.text] = told
            if instruction.task:
                self._known.setdefault(instruction.task, told)
        self._understood: OrderedDict[str, Told | str] = OrderedDict()
        self._lock = threading.Lock()
        self._encoding = asyncio.Semaphore(1)
        if encoder is not None:
            phrases = [(i, text) for i, each in enumerate(spec.instructions) for text in (each.text, *each.paraphrases)]
            self._phrases = encoder.encode([text for _, text in phrases])
            owners = np.array([i for i, _ in phrases])
            self._owners = [self._texts[i] for i in owners]
            for (_, text), owner, embedding in zip(phrases, self._owners, self._phrases, strict=True):
                self._known.setdefault(text, Told(owner, embedding))
            # A sentence among paraphrases of two tasks is of the one whose paraphrases it is nearest to on the whole.
            self._centres = np.stack([self._phrases[owners == i].mean(axis=0) for i in range(len(self._texts))])
            self._centres /= np.linalg.norm(self._centres, axis=1, keepdims=True)

    def __bool__(self) -> bool:
        """Whether the policy needs an instruction."""
        return bool(self._known)

    @property
    def takes_free_text(self) -> bool:
        """Whether other sentences than the specification's are understood."""
        return self._encoder is not None

    def is_new(self, text: str) -> bool:
        """Whether understanding ``text`` means running the encoder, which takes some milliseconds."""
        if self._encoder is None or not 0 < len(text) <= MAX_TEXT_LENGTH:
            return False
        return text not in self._known and text not in self._understood

    async def learn(self, text: str) -> None:
        """Run the encoder on another thread, if ``text`` needs it, so that other robots are served meanwhile.

        Whatever is wrong with ``text`` is found again by ``understand``.
        """
        if self.is_new(text):
            # One sentence at a time: robots that keep changing their words wait for each other, and not the others.
            async with self._encoding:
                try:
                    await asyncio.to_thread(self.understand, text)
                except ObservationRejected:
                    pass
                except Exception:  # such as no memory: it must not end the stream
                    log.exception("the text encoder failed", policy=self._policy)

    def named(self, text: str) -> str | None:
        """The instruction that ``text`` is known to mean, or ``None``; never runs the encoder."""
        told = self._known.get(text) or self._understood.get(text)
        return told.instruction if isinstance(told, Told) else None

    def understand(self, text: str) -> Told:
        """The embedding that the policy is given for ``text``.

        Raises:
            ObservationRejected: it is no instruction and there is no encoder, or it is far from every instruction.
        """
        if told := self._known.get(text):
            return told
        if self._encoder is None or not text:
            raise ObservationRejected(
                pb.ERROR_CODE_UNKNOWN_INSTRUCTION,
                f"instruction {text[:SHOWN_LENGTH]!r} is not known to {self._policy}; expected one of {self._list()}"
                + (
                    f"; other words need its text encoder {self._missing_encoder}, which this server has not "
                    "(chunkcast-serve --text-encoders)"
                    if self._missing_encoder
                    else ""
                ),
            )
        if len(text) > MAX_TEXT_LENGTH:  # and nothing of it is remembered
            raise ObservationRejected(
                pb.ERROR_CODE_UNKNOWN_INSTRUCTION,
                f"the instruction has {len(text)} characters, expected at most {MAX_TEXT_LENGTH}: one sentence",
            )
        with self._lock:
            understood = self._understood.get(text)
            if understood is not None:
                self._understood.move_to_end(text)
        if understood is None:
            understood = self._embed(text)
            with self._lock:
                self._understood[text] = understood
                while len(self._understood) > REMEMBERED:
                    self._understood.popitem(last=False)
        if isinstance(understood, str):
            raise ObservationRejected(pb.ERROR_CODE_UNKNOWN_INSTRUCTION, understood)
        return understood

    def _embed(self, text: str) -> Told | str:
        """What ``text`` means, or why it means nothing to this policy."""
        assert self._encoder is not None
        try:
            embedding = self._encoder.encode([text])[0]
        except TextEncoderError as error:
            return str(error)
        similarities = self._phrases @ embedding
        similarity = float(similarities.max())
        # In the log, a control character could pretend to be another line.
        shown = "".join(each if each.isprintable() else "?" for each in text[:SHOWN_LENGTH])
        if similarity < self._min_similarity:
            log.debug("instruction refused", policy=self._policy, instruction=shown, similarity=round(similarity, 3))
            return (
                f"instruction {shown!r} is far from everything that {self._policy} knows (similarity {similarity:.2f}, "
                f"expected at least {self._min_similarity:.2f}; the nearest is "
                f"{self._owners[int(similarities.argmax())]!r}); say it in other words, or send one of {self._list()}"
            )
        nearest = self._texts[int((self._centres @ embedding).argmax())]
        log.debug(
            "instruction", policy=self._policy, instruction=shown, nearest=nearest, similarity=round(similarity, 3)
        )
        return Told(nearest, embedding, similarity)

    def _list(self) -> str:
        more = ", ..." if len(self._texts) > SHOWN_INSTRUCTIONS else ""
        return f"[{', '.join(repr(text[:SHOWN_LENGTH]) for text in self._texts[:SHOWN_INSTRUCTIONS])}{more}]"


class TextEncoders:
    """Encoders by SHA-256, each loaded once for all policies that name it.

    Args:
        folder: whose sub-folders are encoders; ``None`` looks beside each bundle, in ``text-encoders``.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._loaded: dict[str, TextEncoder] = {}
        self._lock = threading.Lock()

    def of(self, spec: pb.PolicySpec, bundle: Path) -> TextEncoder | None:
        """The encoder that ``spec`` names, or ``None`` where it names none or there is none here: said in the log.

        Raises:
            TextEncoderError: the encoder is damaged.
            BundleError: its embeddings are not as long as the policy's.
        """
        wanted = spec.text_encoder
        if not wanted.sha256:
            return None
        with self._lock:
            encoder = self._loaded.get(wanted.sha256)
            if encoder is None:
                folder = self._folder or bundle.resolve().parent / "text-encoders"
                found = find_encoder(folder, wanted.sha256)
                if found is None:
                    log.warning(
                        "free text is not understood: the text encoder is missing",
                        policy=spec.name,
                        encoder=f"{wanted.name} {wanted.sha256[:12]}",
                        folder=str(folder),
                    )
                    return None
                encoder = self._loaded[wanted.sha256] = TextEncoder(found)
        size = len(spec.instructions[0].embedding) if spec.instructions else 0
        if encoder.size != size:
            raise BundleError(
                f"{spec.name} has instruction embeddings of {size} entries, its text encoder {encoder.name} makes "
                f"{encoder.size}; export the policy again"
            )
        return encoder
