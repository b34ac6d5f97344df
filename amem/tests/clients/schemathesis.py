"""Requests that schemathesis makes up from the OpenAPI document, and all its checks of what comes back.

schemathesis.py URL
"""

import subprocess
import sys
from pathlib import Path

url = sys.argv[1]
schemathesis = Path(sys.executable).with_name("schemathesis")
options = ["--checks", "all", "--max-examples", "12", "--seed", "1", "--generation-database", "none",
           "--request-timeout", "30", "--workers", "2", "--no-color", "--wait-for-schema", "10",
           # Lines of JSON are no form that requests can be made up in.
           "--exclude-path", "/v1/memories/{user}/import"]
config = Path(__file__).with_name("schemathesis.toml")
sys.exit(subprocess.run([schemathesis, "--config-file", config, "run", f"{url}/openapi.json", "--url", url, *options]).returncode)
