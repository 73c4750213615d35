#!/usr/bin/env python3
"""A chatbot that answers from a folder of documents and says where it has it from: LangChain on slurmgate.

    pip install langchain-openai langchain-text-splitters numpy
    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=sk-sg-...
    python examples/rag_chatbot.py docs/
    python examples/rag_chatbot.py examples/documents --question "What happens at the wall time?"

Text and Markdown files are split into passages; the gateway's /v1/embeddings makes them into vectors, kept in memory.
For each question the nearest passages go to the chat model, numbered, with what was said before.

The models of `slurmgate serve` without a configuration are too small to read passages: they answer what they know about
slurmgate, and the passages shown are the right ones. A real model (--model, or SLURMGATE_CHAT_MODEL) makes its answer
from the passages and cites them; give it more to read: --passages 5 --characters 1000 --turns 4, say.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import openai
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter

SUFFIXES = {".md", ".markdown", ".rst", ".txt"}
FOLLOW_UP_WEIGHT = 0.9  # a question that says enough by itself goes before what was asked earlier
PROMPT = ChatPromptTemplate(
    [
        (
            "system",
            "Use the following context to answer the question, and cite it as [1]. If the answer is not there, say that"
            " you don't know.\n\n{context}",
        ),
        MessagesPlaceholder("history"),
        ("human", "{question}"),
    ]
)


def passages_of(folder: Path, characters: int) -> list[Document]:
    """Every text file under the folder, in passages of at most so many characters that know their file."""
    documents = [
        Document(path.read_text(errors="replace"), metadata={"source": str(path.relative_to(folder))})
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    splitter = RecursiveCharacterTextSplitter(chunk_size=characters, chunk_overlap=0)
    return splitter.split_documents(documents)


class Chatbot:
    """One conversation over the passages: `answer` streams, then `cited` says which passages stand behind the answer.

    passages   how many the model reads for an answer
    turns      how many questions, with their answers, it remembers
    """

    def __init__(self, store: InMemoryVectorStore, model: ChatOpenAI, passages: int, turns: int) -> None:
        self._chain = PROMPT | model
        self._store = store
        self._passages = passages
        self._turns = turns
        self._history: list[BaseMessage] = []
        self._found: list[Document] = []
        self._text = ""

    def answer(self, question: str) -> Iterator[str]:
        """The answer, piece by piece."""
        history = self._history[-2 * self._turns :] if self._turns else []
        self._found, self._text = self._retrieve(question), ""
        context = "\n\n".join(f"[{number}] {one.page_content}" for number, one in enumerate(self._found, 1))
        for piece in self._chain.stream({"context": context, "history": history, "question": question}):
            self._text += piece.content
            yield piece.content
        self._history += [HumanMessage(question), AIMessage(self._text)]

    def cited(self) -> list[tuple[int, Document]]:
        """The passages that the last answer cites by number; all that were found, if it cites none."""
        numbers = {int(number) for number in re.findall(r"\[(\d+)\]", self._text)}
        found = list(enumerate(self._found, 1))
        return [(number, one) for number, one in found if number in numbers] or found

    def _retrieve(self, question: str) -> list[Document]:
        """The nearest to the question alone or to it after the one before: "and then?" says little by itself."""
        asked = [message.text for message in self._history if message.type == "human"]
        queries = [(question, 1.0), *((f"{previous} {question}", FOLLOW_UP_WEIGHT) for previous in asked[-1:])]
        scores: dict[str, float] = {}
        found: dict[str, Document] = {}
        for query, weight in queries:
            for one, likeness in self._store.similarity_search_with_score(query, k=self._passages):
                found[one.id] = one
                scores[one.id] = max(weight * likeness, scores.get(one.id, 0.0))
        nearest = sorted(found, key=lambda name: -scores[name])
        return [found[name] for name in nearest[: self._passages]]


def converse(chatbot: Chatbot, questions: Iterable[str]) -> None:
    for question in questions:
        for piece in chatbot.answer(question):
            print(piece, end="", flush=True)
        print()
        for number, passage in chatbot.cited():
            text = " ".join(passage.page_content.split())
            print(f"  [{number}] {passage.metadata['source']}: {text}")
        print(flush=True)


def typed() -> Iterator[str]:
    """Questions from the keyboard, or one a line from a pipe, until an empty line or the end."""
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not question:
            return
        yield question


def main() -> int:
    parser = argparse.ArgumentParser(description="Chat with a folder of documents through slurmgate.")
    parser.add_argument("folder", type=Path, help="text and Markdown files, at any depth")
    parser.add_argument("--question", action="append", help="ask this and end; may be given several times")
    parser.add_argument("--base-url", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: OPENAI_API_KEY")
    parser.add_argument("--model", default=os.environ.get("SLURMGATE_CHAT_MODEL", "slurmgate-guide"))
    parser.add_argument("--embedding-model", default=os.environ.get("SLURMGATE_EMBEDDING_MODEL", "slurmgate-embed"))
    parser.add_argument("--characters", type=int, default=200, help="most characters of a passage")
    parser.add_argument("--passages", type=int, default=2, help="passages that the model reads for an answer")
    parser.add_argument("--turns", type=int, default=1, help="earlier questions and answers that it reads again")
    options = parser.parse_args()
    if not options.api_key:
        parser.error("no key: set OPENAI_API_KEY to the one that `slurmgate serve` printed, or give --api-key")
    passages = passages_of(options.folder, options.characters)
    if not passages:
        parser.error(f"no text in {options.folder}: looked for files with {', '.join(sorted(SUFFIXES))}")
    at = {"base_url": options.base_url, "api_key": options.api_key}
    # texts instead of token ids: another model's tokens mean nothing to this one, and none are downloaded
    embeddings = OpenAIEmbeddings(model=options.embedding_model, check_embedding_ctx_length=False, chunk_size=64, **at)
    try:
        store = InMemoryVectorStore.from_documents(passages, embeddings)
        model = ChatOpenAI(model=options.model, temperature=0, **at)
        converse(Chatbot(store, model, options.passages, options.turns), options.question or typed())
    except openai.OpenAIError as error:
        print(f"{options.base_url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
