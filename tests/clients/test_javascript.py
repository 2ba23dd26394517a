"""The JavaScript client: its own tests against a real server with a fake engine, and the package that npm makes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from support.browser import open_browser, serve_files
from support.documents import ROOT
from support.keys import ENVIRONMENT_KEY
from support.served import Server

PACKAGE = ROOT / "clients" / "javascript"
USE_IN_A_PAGE = """
async ([baseUrl, apiKey]) => {
  const {AudioCraft, InvalidRequestError} = await import("./index.js");
  const client = new AudioCraft({baseUrl, apiKey});
  const options = {duration: 1, format: "mp3"};
  const task = await client.generateAudioAsync("solo cello", {...options, pollInterval: 20});
  const audio = new Audio(URL.createObjectURL(await client.download(task)));
  audio.muted = true;
  await audio.play();
  const streamed = await (await client.stream("solo cello", options)).blob();
  const error = await client.generateAudio("").catch((error) => error);
  return [task.status, Math.round(audio.duration), streamed.type, error instanceof InvalidRequestError];
}
"""


def test_its_tests_pass_against_a_real_server(server: Server, directory: Path) -> None:
    environ = os.environ | {
        "AUDIOCRAFT_URL": server.url,
        "AUDIOCRAFT_KEY": ENVIRONMENT_KEY,
        "AUDIOCRAFT_HOLD": str(directory / "hold"),
    }
    # Node 22 and later have WebSocket without the switch.
    command = ["node", "--experimental-websocket", "--test", "--test-reporter=spec", "test/client.test.js"]
    done = subprocess.run(command, cwd=PACKAGE, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_the_package_contains_what_it_exports(tmp_path: Path) -> None:
    command = ["npm", "pack", "--json", "--offline", "--pack-destination", str(tmp_path)]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, timeout=60, check=True)
    (packed,) = json.loads(done.stdout)
    names = {file["path"] for file in packed["files"]}
    assert names == {"LICENSE", "README.md", "package.json"} | {
        f"src/{path.name}" for path in (PACKAGE / "src").iterdir()
    }
    (archive,) = tmp_path.glob("*.tgz")
    installed = tmp_path / "node_modules" / "audiocraft-api-client"
    installed.mkdir(parents=True)
    subprocess.run(["tar", "-xzf", archive, "-C", installed, "--strip-components=1"], check=True)
    program = "import * as client from 'audiocraft-api-client'; console.log(Object.keys(client).length)"
    command = ["node", "--input-type=module", "--eval", program]
    loaded = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert int(loaded.stdout) > 10


def test_it_works_in_a_page_of_another_origin(server: Server, tmp_path: Path) -> None:
    with serve_files(PACKAGE / "src") as url, open_browser(tmp_path) as browser:
        page = browser.new_page()
        page.goto(url)
        result = page.evaluate(USE_IN_A_PAGE, [server.url, ENVIRONMENT_KEY])
    assert result == ["completed", 1, "audio/mpeg", True]
