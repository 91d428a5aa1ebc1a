"""The web page that a browser gets at the root: its microphone, recognised as it speaks."""

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    [
        "default-src 'self'",
        "connect-src 'self' ws: wss:",  # older browsers do not count websockets of the same host as 'self'
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": POLICY,
    "permissions-policy": "microphone=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def add_to(app: FastAPI) -> None:
    """Adds the page at ``/`` and its files at ``/page/NAME``; they hold nothing secret, so that all may come."""
    files = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    index = files.pop("index.html")

    async def root() -> Response:
        return Response(index, media_type=TYPES[".html"], headers=HEADERS)

    async def part(request: Request) -> Response:
        name: str = request.path_params["name"]
        if name not in files:
            return JSONResponse({"error": {"code": "not_found", "message": "the page has no such file"}}, 404)
        return Response(files[name], media_type=TYPES[Path(name).suffix], headers=HEADERS)

    app.add_api_route("/", root, methods=["GET", "HEAD"])
    app.add_api_route("/page/{name}", part, methods=["GET", "HEAD"])
