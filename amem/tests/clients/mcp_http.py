"""`amem mcp --http`: mcp_http.py URL MODE"""

import sys
from functools import partial

import anyio
from mcp import Client

from mcp_checks import all_of_it

url, mode = sys.argv[1:]
anyio.run(all_of_it, partial(Client, url), mode)
