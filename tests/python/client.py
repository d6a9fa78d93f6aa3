"""Uses a broker through the client that openapi-generator made from the
description which the broker itself serves.

The client's models are strict: a value of another type than described raises.
What they would pass over, a field outside the description, is found by
comparing the answer as it came with what the model made of it.

usage: client.py FOLDER_OF_THE_CLIENT SETTINGS_JSON
"""

import base64
import json
import sys
import time
from datetime import datetime

import urllib3

sys.path.insert(0, sys.argv[1])
SETTINGS = json.loads(sys.argv[2])

import berth_client  # noqa: E402
from berth_client import models  # noqa: E402
from berth_client.exceptions import ApiException  # noqa: E402

DEADLINE_SECONDS = 60
OWNER = "barbara"


def token_of(url: str, **arguments) -> dict:
    """Asks for an access token in one of the forms that clients use."""
    pool = urllib3.PoolManager(ca_certs=SETTINGS["ca"])
    headers = urllib3.make_headers(basic_auth=f"{SETTINGS['client_id']}:{SETTINGS['client_secret']}")
    headers.update(arguments.pop("headers", {}))
    answer = pool.request("POST", SETTINGS["url"] + url, headers=headers, **arguments)
    assert answer.status == 200, (answer.status, answer.data)
    token = answer.json()
    assert token["token_type"].lower() == "bearer", token
    assert isinstance(token["expires_in"], int), token
    return token


def get_token() -> str:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    query = "/oauth2/token?grant_type=client_credentials"
    tokens = [
        token_of(query),
        token_of(query, headers=form, body=""),
        token_of("/oauth2/token", headers=form, body="grant_type=client_credentials&scope=anything/at_all"),
    ]
    return tokens[-1]["access_token"]


def difference(sent, modelled, where="answer"):
    """Where a model holds less or more than was sent; None if it does not."""
    if isinstance(sent, dict) and isinstance(modelled, dict):
        # What may be null is in the model also when it was not sent.
        modelled = {key: value for key, value in modelled.items() if value is not None}
        if sent.keys() != modelled.keys():
            return f"{where}: {sorted(sent)} became {sorted(modelled)}"
        parts = ((sent[key], modelled[key], f"{where}.{key}") for key in sent)
    elif isinstance(sent, list) and isinstance(modelled, list) and len(sent) == len(modelled):
        parts = ((one, other, f"{where}[{index}]") for index, (one, other) in enumerate(zip(sent, modelled)))
    elif isinstance(modelled, datetime):
        fits = modelled.tzinfo is not None and datetime.fromisoformat(sent.replace("Z", "+00:00")) == modelled
        return None if fits else f"{where}: {sent!r} became {modelled!r}"
    else:
        fits = type(sent) is type(modelled) and sent == modelled
        return None if fits else f"{where}: {sent!r} became {modelled!r}"
    return next((found for part in parts if (found := difference(*part))), None)


class Broker:
    """The generated client's calls, each with its answer checked."""

    def __init__(self, token: str):
        configuration = berth_client.Configuration(
            host=SETTINGS["url"], access_token=token, ssl_ca_cert=SETTINGS["ca"]
        )
        client = berth_client.ApiClient(configuration)
        self.sessions = berth_client.SessionsApi(client)
        self.servers = berth_client.ServersApi(client)
        self.permissions = berth_client.SessionPermissionsApi(client)
        self.connection = berth_client.GetSessionConnectionDataApi(client)

    @staticmethod
    def call(operation, *arguments):
        answer = operation(*arguments)
        assert answer.status_code == 200
        sent = json.loads(answer.raw_data)
        found = difference(sent, answer.data.to_dict())
        assert found is None, found
        return answer.data

    def describe_sessions(self, **query):
        request = models.DescribeSessionsRequestData(**query)
        return self.call(self.sessions.describe_sessions_with_http_info, request)

    def session(self, session_id: str):
        found = self.describe_sessions(session_ids=[session_id]).sessions
        assert len(found) == 1, found
        return found[0]

    def wait_for(self, session_id: str, state: str):
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            session = self.session(session_id)
            if session.state == state:
                return session
            assert time.monotonic() < end, f"not {state}: {session}"
            time.sleep(0.05)

    def create(self, *items):
        return self.call(self.sessions.create_sessions_with_http_info, list(items))


def wanted(**fields):
    return models.CreateSessionRequestData(**{"name": "test1", "owner": OWNER, "type": "VIRTUAL", **fields})


def refused(operation, *arguments) -> ApiException:
    try:
        operation(*arguments)
    except ApiException as exception:
        return exception
    raise AssertionError("it was not refused")


def servers_are_described(broker: Broker) -> models.Server:
    described = broker.call(broker.servers.describe_servers_with_http_info, models.DescribeServersRequestData())
    (server,) = described.servers
    assert server.availability == "AVAILABLE" and server.unavailability_reason is None, server
    assert server.host.memory.total_bytes > 0 and server.host.os.family == "linux", server.host
    tags = {tag.key: tag.value for tag in server.tags}
    assert tags["dcv:os-family"] == "linux" and tags["dcv:max-virtual-sessions"] == "-1", tags
    # An empty list restricts nothing.
    request = models.DescribeServersRequestData(server_ids=[])
    assert len(broker.call(broker.servers.describe_servers_with_http_info, request).servers) == 1
    return server


def a_session_is_created(broker: Broker) -> str:
    created = broker.create(
        wanted(max_concurrent_clients=3, requirements="tag:dcv:os-family = 'linux'"),
        wanted(name=None),
        wanted(type="Virtual", requirements="tag:no_such_tag = 'x'"),
    )
    (accepted,) = created.successful_list
    assert (accepted.state, accepted.substate) == ("CREATING", "SESSION_PLACING"), accepted
    assert accepted.server is None, "tags of a server break a client that reads them here"
    assert accepted.num_of_connections == 0
    nameless, unplaced = created.unsuccessful_list
    assert "Name" in nameless.failure_reason, nameless
    assert "no dcv server found for placement" in unplaced.failure_reason, unplaced
    assert unplaced.create_session_request_data.requirements == "tag:no_such_tag = 'x'"

    session = broker.wait_for(accepted.id, "READY")
    assert (session.name, session.owner, session.type) == ("test1", OWNER, "VIRTUAL"), session
    assert session.max_concurrent_clients == 3 and session.num_of_connections == 0, session
    assert session.creation_time is not None and session.server.id, session
    return session.id


def a_user_is_given_a_connection(broker: Broker, session_id: str):
    get = broker.connection.get_session_connection_data_with_http_info
    first, second = (broker.call(get, session_id, OWNER) for _ in range(2))
    assert first.session.id == session_id, first
    assert first.connection_token and first.connection_token != second.connection_token
    assert refused(get, "no-such-session", OWNER).status in (400, 404)
    (queued,) = broker.create(wanted(requirements="tag:later = 'x'", enqueue_request=True)).successful_list
    exception = refused(get, queued.id, OWNER)
    assert exception.status == 400 and "not in READY" in exception.body, exception.body
    delete(broker, queued.id)


def a_picture_is_taken(broker: Broker, session_id: str):
    item = models.GetSessionScreenshotRequestData(session_id=session_id, max_width=64, max_height=64)
    missing = models.GetSessionScreenshotRequestData(session_id="no-such-session")
    taken = broker.call(broker.sessions.get_session_screenshots_with_http_info, [item, missing])
    (success,) = taken.successful_list
    (image,) = success.session_screenshot.images
    assert success.session_screenshot.session_id == session_id
    assert image.format == "png" and image.primary is True and image.creation_time is not None, image
    assert base64.b64decode(image.data).startswith(b"\x89PNG\r\n\x1a\n")
    (failure,) = taken.unsuccessful_list
    assert failure.get_session_screenshot_request_data.session_id == "no-such-session", failure


def permissions_are_replaced(broker: Broker, session_id: str):
    text = base64.b64encode(b"[permissions]\n%owner% allow builtin\n").decode()
    items = [
        models.UpdateSessionPermissionsRequestData(session_id=one, owner=OWNER, permissions_file=text)
        for one in (session_id, "no-such-session")
    ]
    update = broker.permissions.update_session_permissions_with_http_info
    answer = broker.call(update, items)
    assert [success.session_id for success in answer.successful_list] == [session_id]
    (failure,) = answer.unsuccessful_list
    assert failure.failure_reason == "The requested dcvSession does not exist", failure


def servers_are_closed_and_opened(broker: Broker, server_id: str):
    close = broker.servers.close_servers_with_http_info
    closed = broker.call(close, [models.CloseServerRequestData(server_id=server_id)])
    assert closed.unsuccessful_list[0].failure_code == "DCV_SERVER_HAS_SESSIONS", closed
    closed = broker.call(close, [models.CloseServerRequestData(server_id=server_id, force=True)])
    assert closed.successful_list[0].server_id == server_id, closed
    request = models.DescribeServersRequestData(server_ids=[server_id])
    (server,) = broker.call(broker.servers.describe_servers_with_http_info, request).servers
    assert (server.availability, server.unavailability_reason) == ("UNAVAILABLE", "SERVER_CLOSED"), server
    assert "no dcv server found" in broker.create(wanted()).unsuccessful_list[0].failure_reason

    items = [models.OpenServerRequestData(server_id=one) for one in (server_id, "no-such-server")]
    opened = broker.call(broker.servers.open_servers_with_http_info, items)
    assert opened.successful_list[0].server_id == server_id, opened
    assert opened.unsuccessful_list[0].failure_code == "DCV_SERVER_NOT_FOUND", opened


def pages_hold_each_session_once(broker: Broker):
    created = broker.create(*(wanted(owner=f"user{number}") for number in range(7)))
    ids = {session.id for session in created.successful_list}
    assert len(ids) == 7, created
    filtered = broker.describe_sessions(filters=[models.KeyValuePair(key="owner", value="user3")])
    assert [session.owner for session in filtered.sessions] == ["user3"], filtered
    seen, token, size = [], None, 1
    while True:
        # Clients may ask for another number each time.
        page = broker.describe_sessions(session_ids=sorted(ids), max_results=size, next_token=token)
        seen += [session.id for session in page.sessions]
        token, size = page.next_token, size + 1
        if not token:
            break
    assert sorted(seen) == sorted(ids), seen
    for session in created.successful_list:
        broker.wait_for(session.id, "READY")
        delete(broker, session.id, session.owner)


def delete(broker: Broker, session_id: str, owner: str = OWNER):
    items = [models.DeleteSessionRequestData(session_id=one, owner=owner) for one in (session_id, "no-such-session")]
    deleted = broker.call(broker.sessions.delete_sessions_with_http_info, items)
    (success,) = deleted.successful_list
    assert success.session_id == session_id and success.state in ("DELETING", "DELETED"), success
    (failure,) = deleted.unsuccessful_list
    assert failure.failure_reason == "The requested dcvSession does not exist", failure
    broker.wait_for(session_id, "DELETED")


def strangers_are_refused():
    for token, error in ((None, "No authorization header"), ("no.such.token", None)):
        exception = refused(Broker(token).sessions.describe_sessions)
        assert exception.status == 401, exception
        answer = json.loads(exception.body)
        assert list(answer) == ["error"] and error in (None, answer["error"]), answer


def main():
    broker = Broker(get_token())
    server = servers_are_described(broker)
    session_id = a_session_is_created(broker)
    a_user_is_given_a_connection(broker, session_id)
    a_picture_is_taken(broker, session_id)
    permissions_are_replaced(broker, session_id)
    servers_are_closed_and_opened(broker, server.id)
    pages_hold_each_session_once(broker)
    delete(broker, session_id)
    strangers_are_refused()
    print("all calls succeeded")


main()
