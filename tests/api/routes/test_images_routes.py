"""`/images` and `/download`: the gallery, its pages, and pictures that go."""

from __future__ import annotations

import http.client
import io
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from PIL import Image

from tests.service import RunningService

TRAVERSALS = [
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cetc",
    "%2fetc%2fpasswd",
    "....//....//etc/passwd",
    "%00",
    "x%00.png",
    "%ff%fe",
    "a" * 200,
    "bf16.sqlite3",
    ".staging",
    "CON",
]


def drawn(service: RunningService, word: str = "balloon", **body) -> dict:
    """A finished job's first picture; the word is part of its prompt."""
    job = service.wait_for_job(service.submit(f"a red {word}", **body))
    return job["result"]["images"][0]


def gallery(service: RunningService, **query) -> list[dict]:
    answer = service.client.get("/images", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["images"]


# List


def test_images_are_listed_newest_first_with_their_requests(engine_service: RunningService) -> None:
    pictures = [drawn(engine_service, seed=seed) for seed in (1, 2, 3)]
    listed = gallery(engine_service, limit=3)
    assert [image["id"] for image in listed] == [image["id"] for image in reversed(pictures)]
    newest = listed[0]
    assert (newest["prompt"], newest["seed"]) == ("a red balloon", 3)
    assert (newest["request"]["prompt"], newest["request"]["width"]) == ("a red balloon", 128)
    assert newest["size_bytes"] == len(engine_service.client.get(newest["image_url"]).content)


def test_images_of_one_job_each_name_their_seed(engine_service: RunningService) -> None:
    drawn(engine_service, seed=50, num_images=3)
    listed = gallery(engine_service, limit=3)
    assert [image["seed"] for image in listed] == [52, 51, 50]
    assert [image["request"]["seed"] for image in listed] == [52, 51, 50]


def test_images_request_sent_again_gives_the_same_bytes(engine_service: RunningService) -> None:
    drawn(engine_service, seed=60, num_images=2)
    listed = gallery(engine_service, limit=1)[0]
    answer = engine_service.client.post("/generate?format=raw", json=listed["request"])
    assert answer.content == engine_service.client.get(listed["image_url"]).content


def test_images_pages_cover_all_once(engine_service: RunningService) -> None:
    """Pictures of one job share their time; a page that ends between them loses none."""
    word = uuid.uuid4().hex
    for _ in range(3):
        drawn(engine_service, word, num_images=3)
    whole = [image["id"] for image in gallery(engine_service, q=word)]
    paged: list[str] = []
    while page := gallery(
        engine_service, q=word, limit=2, **({"before": paged[-1]} if paged else {})
    ):
        paged += [image["id"] for image in page]
    assert paged == whole and len(whole) == 9


def test_images_before_one_that_does_not_exist_is_refused(engine_service: RunningService) -> None:
    """An empty page would say that the gallery ends here."""
    answer = engine_service.client.get("/images?before=nothing")
    assert answer.status_code in (400, 404)
    assert answer.headers["content-type"] == "application/problem+json"


def test_images_are_found_by_words_of_the_prompt(engine_service: RunningService) -> None:
    word = uuid.uuid4().hex
    wanted = drawn(engine_service, word)
    drawn(engine_service)
    assert [image["id"] for image in gallery(engine_service, q=word)] == [wanted["id"]]
    assert [image["id"] for image in gallery(engine_service, q=f"RED {word[:8]}")] == [wanted["id"]]


@pytest.mark.parametrize(
    ("words", "query", "found"),
    [
        ("50% {}", "50% {}", True),
        ("500 {}", "50% {}", False),
        ("a_b {}", "a_b {}", True),
        ("axb {}", "a_b {}", False),
        ("a\\b {}", "a\\b {}", True),
        ("it's {}", "it's {}", True),
        ('say "{}"', 'say "{}"', True),
        ("Schön {}", "Schön {}", True),
        ("{}", "%", False),
        ("{}", "_", False),
        ("{}", "' OR 1=1 --", False),
    ],
)
def test_images_query_means_its_letters(
    engine_service: RunningService, words: str, query: str, found: bool
) -> None:
    word = uuid.uuid4().hex
    wanted = drawn(engine_service, words.format(word))
    listed = {image["id"] for image in gallery(engine_service, q=query.format(word), limit=500)}
    assert (wanted["id"] in listed) == found


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", f"q={'a' * 201}", f"before={'a' * 65}"]
)
def test_images_wrong_query_is_refused(engine_service: RunningService, query: str) -> None:
    answer = engine_service.client.get(f"/images?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["errors"][0]["field"] == query.partition("=")[0]


# Files


@pytest.mark.parametrize(("name", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_image_file_has_its_type(engine_service: RunningService, name: str, suffix: str) -> None:
    image = drawn(engine_service, output_format=name)
    answer = engine_service.client.get(image["image_url"])
    assert answer.headers["content-type"] == f"image/{name}"
    assert image["filename"].endswith(suffix)
    assert Image.open(io.BytesIO(answer.content)).format.lower() == name


def test_image_download_is_an_attachment_of_the_same_bytes(engine_service: RunningService) -> None:
    image = drawn(engine_service)
    answer = engine_service.client.get(image["download_url"])
    disposition = answer.headers["content-disposition"]
    assert disposition == f'attachment; filename="{image["filename"]}"'
    assert answer.content == engine_service.client.get(image["image_url"]).content


def test_image_thumbnail_is_a_small_jpeg(engine_service: RunningService) -> None:
    image = drawn(engine_service, width=512, height=256)
    for _ in range(2):
        answer = engine_service.client.get(f"/images/{image['id']}/thumbnail")
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (256, 128)


def test_image_thumbnail_at_once_by_many_is_whole(engine_service: RunningService) -> None:
    image = drawn(engine_service, width=512, height=512)
    url = f"{engine_service.url}/images/{image['id']}/thumbnail"
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx2.get(url, timeout=120), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        Image.open(io.BytesIO(answer.content)).load()


@pytest.mark.parametrize("path", ["/images/{}", "/images/{}/thumbnail", "/download/{}"])
@pytest.mark.parametrize("name", TRAVERSALS)
def test_image_name_of_ours_is_the_only_way_in(
    engine_service: RunningService, path: str, name: str
) -> None:
    answer = engine_service.client.get(path.format(name))
    assert answer.status_code in (307, 400, 404)
    if answer.status_code != 307:
        assert answer.headers["content-type"] == "application/problem+json"
    assert b"root:" not in answer.content


def test_image_file_deleted_by_hand_is_404_that_says_so(engine_service: RunningService) -> None:
    image = drawn(engine_service)
    engine_service.client.get(f"/images/{image['id']}/thumbnail")
    (engine_service.output_dir / image["filename"]).unlink()
    for url in (image["image_url"], image["download_url"], f"{image['image_url']}/thumbnail"):
        answer = engine_service.client.get(url)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "not on disk" in answer.json()["detail"]
    assert engine_service.client.delete(image["image_url"]).status_code == 204


@pytest.fixture
def damaged(engine_service: RunningService) -> Iterator[str]:
    """The address of a thumbnail that cannot be made: the picture's file is none."""
    image = drawn(engine_service)
    (engine_service.output_dir / image["filename"]).write_bytes(b"no picture")
    yield f"{image['image_url']}/thumbnail"
    assert engine_service.client.delete(image["image_url"]).status_code == 204


def test_image_file_that_is_damaged_tells_no_path(
    engine_service: RunningService, damaged: str
) -> None:
    answer = engine_service.client.get(damaged)
    assert answer.status_code >= 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text and str(engine_service.folder) not in answer.text


def test_answer_to_a_failure_has_the_headers_of_every_answer(
    engine_service: RunningService, damaged: str
) -> None:
    page = "http://127.0.0.1:9000"
    answer = engine_service.client.get(damaged, headers={"Origin": page})
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["access-control-allow-origin"] == page


def test_connection_outlives_a_failure(engine_service: RunningService, damaged: str) -> None:
    """What else a client sends over the same connection must not be lost with it."""
    connection = http.client.HTTPConnection("127.0.0.1", engine_service.port, timeout=60)
    for path in (damaged, "/health/live"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        connection.auto_open = 0  # a connection that was closed is not opened again
    connection.close()
    assert answer.status == 200


# Delete


def test_image_deleted_is_gone_with_its_file_and_thumbnail(engine_service: RunningService) -> None:
    image = drawn(engine_service)
    engine_service.client.get(f"{image['image_url']}/thumbnail")
    answer = engine_service.client.delete(image["image_url"])
    assert (answer.status_code, answer.content) == (204, b"")
    for url in (image["image_url"], image["download_url"], f"{image['image_url']}/thumbnail"):
        assert engine_service.client.get(url).status_code == 404
    assert image["id"] not in [listed["id"] for listed in gallery(engine_service, limit=500)]
    left = [path.name for path in engine_service.output_dir.rglob("*") if image["id"] in path.name]
    assert left == []


def test_image_deleted_leaves_the_others_of_its_job(engine_service: RunningService) -> None:
    job = engine_service.wait_for_job(engine_service.submit(num_images=2))
    first, second = job["result"]["images"]
    engine_service.client.delete(first["image_url"])
    assert engine_service.client.get(second["image_url"]).status_code == 200
    assert engine_service.client.get(f"/jobs/{job['id']}/image?index=0").status_code == 404
    assert engine_service.client.get(f"/jobs/{job['id']}/image?index=1").status_code == 200


def test_image_deleted_twice_is_404(engine_service: RunningService) -> None:
    image = drawn(engine_service)
    answers = [engine_service.client.delete(image["image_url"]).status_code for _ in range(2)]
    assert answers == [204, 404]


def test_image_deleted_leaves_no_gap_in_the_pages(engine_service: RunningService) -> None:
    word = uuid.uuid4().hex
    pictures = [drawn(engine_service, word) for _ in range(4)]
    engine_service.client.delete(pictures[2]["image_url"])
    first = gallery(engine_service, q=word, limit=1)
    rest = gallery(engine_service, q=word, before=first[0]["id"])
    listed = [image["id"] for image in first + rest]
    assert listed == [pictures[i]["id"] for i in (3, 1, 0)]
