import hashlib
import io
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from anyo_rl.data.download import download_archive
from anyo_rl.data.load import Archive, load_interactions
from anyo_rl.data.schema import DataError

FILES = {
    "ml-100k/u.data": "1\t1\t5\t881250949\n1\t2\t3\t881250950\n",
    "ml-100k/u.item": f"1|Toy Story (1995)|01-Jan-1995||{'|0' * 19}\n2|Net, The (1995)|01-Jan-1995||{'|1' * 19}\n",
}


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def titles_of(interactions):
    return dict(interactions.items.select("item_id", "title").iter_rows())


@pytest.fixture
def serve(tmp_path):
    """A local server; call it with a file's name and bytes, and get the url and the md5."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def put(name, content):
        (folder / name).write_bytes(content)
        return f"http://127.0.0.1:{server.server_port}/{name}", hashlib.md5(content).hexdigest()

    yield put
    server.shutdown()
    thread.join()
    server.server_close()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def test_ml_100k_by_name_is_downloaded_once(serve, tmp_path):
    url, md5 = serve("ml-100k.zip", zipped(FILES))
    found = load_interactions("ml-100k", data_dir=tmp_path / "data", archive=Archive(url, md5))
    assert found.name == "ml-100k"
    assert titles_of(found) == {"1": "Toy Story (1995)", "2": "The Net (1995)"}
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["ml-100k"]
    assert sorted(p.name for p in (tmp_path / "data" / "ml-100k").iterdir()) == ["u.data", "u.item"]
    again = load_interactions("ml-100k", data_dir=tmp_path / "data", archive=Archive("http://127.0.0.1:1/gone", md5))
    assert again.frame.equals(found.frame)


def test_a_wrong_checksum_keeps_nothing(serve, tmp_path):
    url, md5 = serve("ml-100k.zip", zipped(FILES))
    with pytest.raises(DataError, match=f"found a file with md5 {md5}, expected 000: nothing was kept"):
        load_interactions("ml-100k", data_dir=tmp_path / "data", archive=Archive(url, "000"))
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_an_unsafe_archive_keeps_nothing(serve, tmp_path, name):
    url, md5 = serve("bad.zip", zipped({name: "x"}))
    with pytest.raises(DataError, match="unsafe member"):
        download_archive(url, md5, tmp_path / "data" / "set")
    assert list((tmp_path / "data").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_a_link_in_the_archive_is_refused(serve, tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    url, md5 = serve("bad.zip", zipped({link: "/etc"}))
    with pytest.raises(DataError, match="unsafe member 'link'"):
        download_archive(url, md5, tmp_path / "data" / "set")


def test_what_is_no_archive(serve, tmp_path):
    url, md5 = serve("page.zip", b"<html>Not found</html>")
    with pytest.raises(DataError, match="is not a zip file"):
        download_archive(url, md5, tmp_path / "data" / "set")
    assert list((tmp_path / "data").iterdir()) == []


def test_server_and_disk_failures(serve, tmp_path):
    url, md5 = serve("ml-100k.zip", zipped(FILES))
    with pytest.raises(DataError, match=r"404.*download it by hand and unpack it as"):
        download_archive(url + ".missing", md5, tmp_path / "set")
    with pytest.raises(DataError, match="the download failed"):
        download_archive("http://127.0.0.1:1/x.zip", md5, tmp_path / "set")
    with pytest.raises(DataError, match="expected http"):
        download_archive("file:///etc/passwd", md5, tmp_path / "set")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        download_archive(url, md5, tmp_path / "file" / "set")
    assert not (tmp_path / "set").exists()


def test_another_process_may_be_faster(serve, tmp_path):
    url, md5 = serve("ml-100k.zip", zipped(FILES))
    (tmp_path / "data" / "set").mkdir(parents=True)
    assert download_archive(url, md5, tmp_path / "data" / "set").is_dir()
    (tmp_path / "data" / "set" / "mine").write_text("")
    download_archive(url, md5, tmp_path / "data" / "set")
    assert (tmp_path / "data" / "set" / "mine").exists()
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["set"]
