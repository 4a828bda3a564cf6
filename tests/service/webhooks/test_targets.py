"""Where webhooks may not go, by the IANA registries of special addresses and what attackers write for them."""

from ipaddress import ip_address, ip_network

import httpx
import pytest

from service.settings import ServiceSettings
from service.webhooks.targets import find_misfit, may_reach
from tests.service.webhooks.receiver import SECRET
from tests.story import Story

INSIDE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1",
    "127.255.255.254", "168.63.129.16", "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "100::1", "2001::1", "2001:0:7f00:1::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1",
    "2002:a9fe:a9fe::1", "3fff::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1",
    "ff02::1", "ff0e::1",
]  # fmt: skip
OUTSIDE = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "172.32.0.1", "192.167.255.255",
           "2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_no_address_of_a_network_inside_is_reached(address: str) -> None:
    assert not may_reach(ip_address(address), (), is_plain=False)
    assert not may_reach(ip_address(address), [ip_network("10.9.0.0/16")], is_plain=False)


@pytest.mark.parametrize("address", OUTSIDE)
def test_public_addresses_are_reached_with_tls_alone(address: str) -> None:
    assert may_reach(ip_address(address), (), is_plain=False)
    assert not may_reach(ip_address(address), [ip_network("10.0.0.0/8")], is_plain=True)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "fd00::7"])
def test_listed_networks_are_reached_also_without_tls(address: str) -> None:
    networks = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    assert may_reach(ip_address(address), networks, is_plain=True)
    assert not may_reach(ip_address("192.168.0.1"), networks, is_plain=True)


REFUSED = [
    "", "hook", "ftp://a.example/", "file:///etc/passwd", "gopher://a.example", "https://", "https:///x",
    "http://a.example/hook", "https://user:word@a.example/", "https://a.example\\@127.0.0.1/",
    "https://a.example:0/", "https://a.example:99999/", "https://a.example/\nHost: b", "https://a .example/",
    "https://localhost/", "https://LOCALHOST./", "https://a.localhost/",
    "https://2130706433/", "https://017700000001/", "https://0x7f000001/", "https://0x7f.1/",
    "https://0177.0.0.1/", "https://127.1/", "https://127.0.0.1./", "https://1.2.3.4.5/", "https://a.0x/",
    *(f"https://[{each}]/" if ":" in each else f"https://{each}/" for each in INSIDE),
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_urls_of_these_forms_are_refused(url: str) -> None:
    assert find_misfit(url, ())


@pytest.mark.parametrize(
    "url",
    ["https://a.example", "https://a.example:8443/x?y=z", "https://8.8.8.8/", "https://bücher.example/"],
)
def test_urls_of_these_forms_are_taken(url: str) -> None:
    assert find_misfit(url, ()) is None


def test_a_post_says_what_is_allowed(api: httpx.Client, story: Story, settings: ServiceSettings) -> None:
    for url in ("http://a.example/", "https://169.254.169.254/", "https://0x7f.1/"):
        for path, body in (
            ("/v1/jobs", {"webhook": {"url": url, "secret": SECRET}}),
            ("/v1/webhook", {"url": url}),
        ):
            answer = api.put(path, json=body) if path == "/v1/webhook" else api.post(path, json=body)
            assert answer.status_code == 422, answer.text
            (error,) = answer.json()["errors"]
            assert error["field"].endswith("url")
            assert url in error["value"]
    lacking = api.post("/v1/jobs", json={"webhook": {"url": "https://a.example"}})
    assert [error["field"] for error in lacking.json()["errors"]] == ["webhook.secret"]
    assert api.get("/v1/jobs").json()["data"] == []
