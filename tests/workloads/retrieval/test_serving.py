import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from page_index import made

from farreach.errors import ConfigError, DataError
from farreach_workloads.retrieval import indexes, live, words
from farreach_workloads.retrieval.serving import Arguments, SearchService, application


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    return made(folder).index.path


@pytest.fixture(scope="module")
def service(folder):
    return SearchService(str(folder))


def test_a_question_is_answered_in_json(service):
    answer = json.loads(json.dumps(service.answer({"query": "files of sound", "mode": "lexical"})))
    assert answer["documents"] == 6
    assert answer["seconds"] > 0
    best = answer["hits"][0]
    assert (best["rank"], best["id"], best["title"]) == (1, "sox", "Sound exchange")
    assert set(best["matched"]) == {"files", "of", "sound"}


def test_several_questions_are_answered_at_once_each_for_itself(service):
    both = service.answer({"query": ["sound", "disk"], "k": 2})["hits"]
    each = [service.answer({"query": one, "k": 2})["hits"] for one in ("sound", "disk")]
    assert [[hit["id"] for hit in of_one] for of_one in both] == [
        [hit["id"] for hit in of_one] for of_one in each
    ]


def test_questions_of_many_clients_are_answered_as_each_alone(service, monkeypatch):
    questions = [
        {"query": query, "k": k, "mode": mode}
        for query in ("sound", "disk", " ")
        for k in (1, 3)
        for mode in ("lexical", "hybrid", "dense")
    ]

    def answer(question):
        try:
            return [hit["id"] for hit in service.answer(question)["hits"]]
        except DataError as error:
            return str(error)

    alone = [answer(question) for question in questions]
    searcher = service._live.now()
    sizes, search = [], searcher.search

    def seen(queries, k, **options):
        sizes.append(len(queries))
        return search(queries, k, **options)

    monkeypatch.setattr(searcher, "search", seen)
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(answer, questions * 20))
    assert together == alone * 20
    assert max(sizes) > 1


def test_a_filter_holds_and_more_than_there_is_may_be_asked_for(service):
    question = {"query": "disk", "k": 1000, "where": "section = 'admin'"}
    assert {hit["id"] for hit in service.answer(question)["hits"]} == {"mount", "umount", "fdisk"}


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ({"query": "a", "kk": 1}, "kk: is unknown. Give query, k, mode, where."),
        ({}, "query: is missing."),
        ({"query": "a", "k": 0}, "k: input should be greater than or equal to 1."),
        ({"query": "a", "k": "5"}, "k: input should be a valid integer."),
        ({"query": 5}, "query: input should be a valid string."),
        ({"query": []}, "query: should be 1 to 256 texts (got 0)."),
        ({"query": "a" * 2001}, "query: has 2,001 characters, and 2,000 are allowed. Shorten it."),
        (
            {"query": "a", "mode": "dens"},
            "mode: input should be 'hybrid', 'dense' or 'lexical'.",
        ),
        (["a"], 'the question should be a mapping, such as {"query": "mount a disk"}.'),
        (
            {"k": 0, "q": "a"},
            "query: is missing. k: input should be greater than or equal to 1. "
            "q: is unknown. Give query, k, mode, where.",
        ),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong(service, question, told):
    with pytest.raises(ConfigError) as caught:
        service.answer(question)
    assert str(caught.value) == told


def test_a_blank_query_is_refused(service):
    with pytest.raises(DataError, match="is empty"):
        service.answer({"query": " "})


def test_no_index_is_an_error_of_the_start(tmp_path):
    with pytest.raises(DataError):
        SearchService(str(tmp_path))


def test_without_ray_serve_the_application_says_what_to_install(monkeypatch):
    import ray

    monkeypatch.setitem(sys.modules, "ray.serve", None)
    monkeypatch.delattr(ray, "serve", raising=False)
    with pytest.raises(ConfigError, match=r"Ray Serve lacks .* pip install 'farreach\[serve\]'"):
        application({"index": "index/debian"})


def test_the_application_names_a_wrong_argument():
    with pytest.raises(ConfigError) as caught:
        application({"indx": "index/debian"})
    assert str(caught.value) == "index: is missing. indx: is unknown. Give index, device."


def test_what_the_shipped_service_is_started_with_is_understood():
    import yaml

    root = Path(__file__).parents[3]
    shipped = yaml.safe_load((root / "cluster/kuberay/rayservice.yaml").read_text())
    (served,) = yaml.safe_load(shipped["spec"]["serveConfigV2"])["applications"]
    assert Arguments.model_validate(served["args"]).device == "cpu"
    assert served["deployments"][0]["name"] == SearchService.__name__


class Asked:
    """A request as Starlette makes it, as far as the service looks at it."""

    def __init__(self, body):
        self._body = body

    async def body(self):
        return self._body

    async def json(self):
        return json.loads(self._body)


@pytest.mark.parametrize(
    ("body", "status", "inside"),
    [
        (b'{"query": "sound"}', 200, "sox"),
        (b'{"query": "sound"', 400, "is no JSON"),
        (b'{"quer": "sound"}', 400, "quer: is unknown"),
        (b'{"query": "' + b"a" * (1 << 20) + b'"}', 413, "bytes"),
    ],
)
def test_a_request_is_answered_with_a_status(service, body, status, inside):
    response = asyncio.run(service(Asked(body)))
    assert response.status_code == status
    assert inside in response.body.decode()


@pytest.mark.slow
@pytest.mark.ray
def test_ray_serve_serves_it(ray_local, folder):
    from urllib.request import Request, urlopen

    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": 18437})
    try:
        serve.run(application({"index": str(folder)}), name="search", route_prefix="/")

        def best(query):
            body = json.dumps({"query": query, "k": 1, "mode": "lexical"}).encode()
            with urlopen(Request("http://127.0.0.1:18437/", body), timeout=60) as response:
                return json.load(response)["hits"][0]["id"]

        with ThreadPoolExecutor(20) as pool:
            assert list(pool.map(best, ["sound", "folder"] * 20)) == ["sox", "mount"] * 20
    finally:
        serve.shutdown()


def test_a_service_answers_from_the_index_as_it_is_now(tmp_path, monkeypatch):
    """What is added, deleted and made compact meanwhile, and how words are weighed."""
    monkeypatch.setattr(live, "LOOK_EVERY_S", 0)
    folder = made(tmp_path).index.path
    service = SearchService(str(folder))

    def found(mode):
        answer = service.answer({"query": "repair a bicycle", "k": 3, "mode": mode})
        return answer["documents"], [hit["id"] for hit in answer["hits"]]

    count, before = found("hybrid")
    (tmp_path / "more.jsonl").write_text('{"_id": "bike", "text": "repair your bicycle"}\n')
    indexes.add(folder, tmp_path / "more.jsonl")
    for mode in ("hybrid", "lexical", "dense"):
        assert found(mode)[0] == count + 1
        assert found(mode)[1][0] == "bike"
    indexes.delete(folder, ["bike"])
    assert found("hybrid") == (count, before)
    indexes.compact(folder)
    assert found("hybrid") == (count, before)
    kept = service._live.now()
    indexes.keep_fusion(folder, indexes.FusionConfig(weight=0.1))
    assert service._live.now().fusion.weight == 0.1
    assert service._live.now() is not kept
    assert service._live.now() is service._live.now()


def test_while_words_are_counted_searches_go_on_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "LOOK_EVERY_S", 0)
    folder = made(tmp_path).index.path
    service = SearchService(str(folder))
    (tmp_path / "more.jsonl").write_text('{"_id": "bike", "text": "repair your bicycle"}\n')
    count, refresh = service.answer({"query": "bicycle"})["documents"], words.refresh

    def between(index):
        assert service.answer({"query": "bicycle"})["documents"] == count
        refresh(index)

    monkeypatch.setattr(words, "refresh", between)
    indexes.add(folder, tmp_path / "more.jsonl")
    assert service.answer({"query": "bicycle"})["documents"] == count + 1


def test_an_index_that_breaks_is_told_of_and_searched_as_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(live, "LOOK_EVERY_S", 0)
    folder = made(tmp_path).index.path
    service = SearchService(str(folder))
    expected = service.answer({"query": "sound"})["hits"]
    (folder / "manifest.json").write_text("{")
    for _ in range(2):
        assert service.answer({"query": "sound"})["hits"] == expected
    assert capsys.readouterr().err.count("Searching goes on with what was read before") == 1
