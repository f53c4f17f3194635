"""From a request to the function that answers it: who asks, which repo, and whether they may."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from hft2ane.localhub.messages import Moved, Refusal, Request, Response
from hft2ane.localhub.store import Repo

Answer = Callable[..., Response]

# A repo's id is `org/name`, or `name` alone as the oldest models have it. Revisions are one percent-encoded segment.
ID = r"(?P<id>[^/]+(?:/(?!(?:refs|settings)$)[^/]+)?)"
API = rf"/api/(?P<kind>models|datasets)/{ID}"
WEB = rf"/(?:(?P<kind>datasets)/)?{ID}"


@dataclass(frozen=True)
class Route:
    method: str
    pattern: re.Pattern[str]
    write: bool
    answer: Answer


@dataclass
class Routes:
    """An answer is called with the request and the pattern's groups; those named kind and id become one, `repo`."""

    table: list[Route] = field(default_factory=list)

    def add(self, method: str, pattern: str, *, write: bool = False) -> Callable[[Answer], Answer]:
        def register(answer: Answer) -> Answer:
            self.table.append(Route(method, re.compile(pattern), write, answer))
            return answer

        return register


def dispatch(request: Request, routes: list[Route]) -> Response:
    for route in routes:
        if route.method == request.method and (found := route.pattern.fullmatch(request.path)):
            break
    else:
        raise Refusal(404, f"This hub has no {request.method} {request.path}")
    groups = {name: unquote(value) if value else None for name, value in found.groupdict().items()}
    if "id" not in groups:
        check_write(request, route.write)
        return route.answer(request, **groups)
    key = f"{groups.pop('kind') or 'models'}/{groups.pop('id')}"
    try:
        repo = visible_repo(request, key)
    except Moved as moved:
        target = request.target.replace(moved.old, moved.new, 1)
        return Response(b"", moved.status, {"Location": target})
    check_write(request, route.write)
    return route.answer(request, repo=repo, **groups)


def visible_repo(request: Request, key: str) -> Repo:
    """The repo, if this user may know of it. To the others, a private one is as good as missing."""
    hidden = Refusal(404 if request.user else 401, "Repository not found", "RepoNotFound")
    try:
        repo = request.store.repo(key)
    except Moved:
        raise
    except Refusal as err:
        raise hidden from err
    if repo.private and not request.user:
        raise hidden
    return repo


def check_write(request: Request, write: bool) -> None:
    if write and not request.user:
        raise Refusal(401, "Invalid username or password.")
    if write and request.user and request.user.role != "write":
        raise Refusal(403, "You don't have the required permissions to perform this action")
