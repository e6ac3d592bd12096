"""What the chart renders: one suite a template, and what holds for all of them."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
CHART = ROOT / "charts/nodestats"
TEMPLATES = CHART / "templates"
AGENT = "agent-daemonset.yaml"
API = "api-workload.yaml"
CONTROLLER = "controller-deployment.yaml"
# Values that make every template and every optional object.
EVERYTHING = {
    "podMonitor.enabled": True,
    "prometheusRules.enabled": True,
    "dashboard.enabled": True,
    "telemetry.otlp.endpoint": "https://collector:4318",
    "telemetry.otlp.headersSecret": "collector",
    "telemetry.otlp.caConfigMap": "collector",
    "networkPolicy.enabled": True,
    "database.url": "wss://database:8000",
    "database.existingSecret": "database",
    "database.caKey": "ca.crt",
    "api.replicas": 2,
}


class Refused(Exception):
    """helm renders nothing, and says why."""


@functools.cache
def rendered(chart, values):
    command = [os.environ["NODESTATS_HELM"], "template", "release", chart]
    command += ["--namespace=space", "--kube-version=1.34.0"]
    for name, value in json.loads(values).items():
        command += ["--set-json", f"{name}={json.dumps(value)}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise Refused(run.stderr)
    files = {}
    for document in run.stdout.split("\n---\n"):
        source = re.search(r"# Source: nodestats/templates/(.*)", document)
        if source:
            files.setdefault(source[1], []).append(yaml.safe_load(document))
    return files


def render(values=None, chart=str(CHART)):
    """The objects of each template, by the template's name."""
    return rendered(chart, json.dumps(values or {}))


def only(template, kind, values=None, name=None, chart=str(CHART)):
    """The one object of a kind (and name) that a template makes."""
    found = [
        one
        for one in render(values, chart).get(template, [])
        if one["kind"] == kind and name in (None, one["metadata"]["name"])
    ]
    assert len(found) == 1, found
    return found[0]


def kinds(template, values=None):
    return [one["kind"] for one in render(values).get(template, [])]


def pod(template, values=None):
    """Spec of the pods that a template's workload makes."""
    workloads = [one for one in render(values)[template] if "template" in one.get("spec", {})]
    assert len(workloads) == 1
    return workloads[0]["spec"]["template"]["spec"]


def container(template, values=None):
    (one,) = pod(template, values)["containers"]
    return one


def volumes(template, values=None):
    return {one["name"]: one for one in pod(template, values).get("volumes", [])}


# All templates


def test_every_template_is_made_and_has_a_suite():
    made = set(render(EVERYTHING))
    there = {str(path.relative_to(TEMPLATES)) for path in TEMPLATES.rglob("*.yaml")}
    assert made == there
    text = pathlib.Path(__file__).read_text()
    for template in there:
        suite = template.rsplit("/", 1)[-1].removesuffix(".yaml").replace("-", "_")
        assert f"def test_{suite}_" in text, f"{template} has no suite"


def test_all_objects_are_labelled_and_stand_in_the_release_s_namespace():
    cluster_wide = {
        "APIService", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition",
        "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    }
    for values in ({}, EVERYTHING):
        for template, objects in render(values).items():
            for one in objects:
                metadata = one["metadata"]
                if one["kind"] == "CustomResourceDefinition":
                    continue
                labels = metadata["labels"]
                assert labels["app.kubernetes.io/part-of"] == "nodestats", template
                assert labels["app.kubernetes.io/instance"] == "release", template
                if one["kind"] in cluster_wide:
                    assert "namespace" not in metadata
                elif metadata["name"] == "nodestats-api-authentication-reader":
                    assert metadata["namespace"] == "kube-system"
                elif metadata["name"] == "nodestats-controller-events":
                    assert metadata["namespace"] in ("default", "space")
                else:
                    assert metadata["namespace"] == "space", metadata["name"]


def test_all_values_are_used_and_nothing_else_is():
    text = "".join(path.read_text() for path in TEMPLATES.rglob("*") if path.is_file())
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", text))

    def paths(values, prefix=""):
        for key, value in values.items():
            path = f"{prefix}{key}"
            yield path
            if isinstance(value, dict) and value:
                yield from paths(value, f"{path}.")

    defined = set(paths(yaml.safe_load((CHART / "values.yaml").read_text())))
    assert used <= defined
    # A group that is used as a whole uses its parts; an image is given to a helper.
    parts = {path for path in defined if any(path.startswith(f"{whole}.") for whole in used)}
    assert {path for path in defined - used - parts if not any(u.startswith(f"{path}.") for u in used)} == set()


@pytest.mark.parametrize(
    ("value", "given", "named"),
    [
        ("agents", {}, "agents"),
        ("agent.procesIo", True, "procesIo"),
        ("agent.processIo", "yes", "processIo"),
        ("agent.buffer.mib", 0, "mib"),
        ("agent.hostRoot.mount", "Bidirectional", "mount"),
        ("controller.poll", "soon", "poll"),
        ("database.url", "http://database", "url"),
        ("api.replicas", 2, "one replica"),
        ("tls.certManager.enabled", True, "issuerRef"),
    ],
)
def test_all_values_that_are_wrong_are_named(value, given, named):
    with pytest.raises(Refused, match=named):
        render({value: given})


def test_all_rules_name_the_code_that_needs_them():
    rules = 0
    for template in TEMPLATES.rglob("*.yaml"):
        lines = template.read_text().splitlines()
        for number, line in enumerate(lines):
            if not line.startswith("  - apiGroups:"):
                continue
            rules += 1
            comment = []
            while lines[number - 1 - len(comment)].lstrip().startswith("#"):
                comment.insert(0, lines[number - 1 - len(comment)].lstrip(" #"))
            text = " ".join(comment)
            source = re.search(r"crates/[a-z_/]+\.rs", text)
            assert source, f"{template.name}:{number + 1} names no code: {text!r}"
            code = (ROOT / source[0]).read_text()
            names = re.findall(r"`([a-z_]+)`", text.split(":")[0])
            assert names, f"{template.name}:{number + 1} names no function"
            for name in names:
                assert f"fn {name}" in code, f"{source[0]} has no function {name}"
    assert rules > 10


def test_no_role_has_a_wildcard_or_more_secrets_than_one():
    for values in ({}, EVERYTHING):
        for objects in render(values).values():
            for role in objects:
                for rule in role.get("rules") or []:
                    assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
                    assert not {"nodes/proxy", "pods/exec", "pods/log"} & set(rule["resources"])
                    if "secrets" in rule["resources"]:
                        assert role["kind"] == "Role"
                        assert rule["resourceNames"] == ["nodestats-tls"]


@pytest.mark.parametrize("template", [AGENT, API, CONTROLLER])
def test_all_programs_are_ordinary_users_without_rights(template):
    spec = pod(template)
    for key in ("hostPID", "hostIPC", "hostNetwork"):
        assert not spec.get(key)
    security = container(template)["securityContext"]
    assert security["runAsUser"] > 0
    assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for port in container(template)["ports"]:
        assert "hostPort" not in port
    resources = container(template)["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"} and "memory" in resources["limits"]


@pytest.mark.parametrize(
    ("template", "image"), [(AGENT, "agent"), (API, "api"), (CONTROLLER, "api")]
)
def test_all_images_follow_registry_tag_and_digest(template, image):
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    name = container(template)["image"]
    assert name in (f"nodestats:{version}", f"nodestats-agent:{version}")
    values = {"image.registry": "registry.example/team/", f"{image}.image.tag": "other"}
    assert container(template, values)["image"] == f"registry.example/team/{name.split(':')[0]}:other"
    digest = "sha256:" + "a" * 64
    values = {f"{image}.image.digest": digest, f"{image}.image.tag": "other"}
    assert container(template, values)["image"] == f"{name.split(':')[0]}@{digest}"
    secrets = [{"name": "pull"}]
    assert pod(template, {"image.pullSecrets": secrets})["imagePullSecrets"] == secrets


@pytest.mark.parametrize(("template", "group"), [(AGENT, "agent"), (API, "api"), (CONTROLLER, "controller")])
def test_all_workloads_take_annotations_environment_and_places(template, group):
    values = {
        "podAnnotations": {"team": "a"},
        f"{group}.extraEnv": [{"name": "RUST_LOG", "value": "debug"}],
        f"{group}.nodeSelector": {"pool": "a"},
        f"{group}.tolerations": [{"key": "t", "operator": "Exists"}],
        f"{group}.priorityClassName": "high",
    }
    workload = next(one for one in render(values)[template] if "template" in one.get("spec", {}))
    assert workload["spec"]["template"]["metadata"]["annotations"]["team"] == "a"
    spec = pod(template, values)
    assert spec["nodeSelector"]["pool"] == "a"
    assert spec["tolerations"] == [{"key": "t", "operator": "Exists"}]
    assert spec["priorityClassName"] == "high"
    assert {"name": "RUST_LOG", "value": "debug"} in container(template, values)["env"]


# agent-daemonset.yaml


def test_agent_daemonset_sees_the_host_and_writes_nothing_of_it():
    mounts = {one["name"]: one for one in container(AGENT)["volumeMounts"]}
    assert set(mounts) == {"buffer", "root", "token"}
    assert mounts["root"]["readOnly"] and mounts["root"]["mountPropagation"] == "HostToContainer"
    assert volumes(AGENT)["root"]["hostPath"]["path"] == "/"
    recursive = {"agent.hostRoot.mount": "RecursiveReadOnly"}
    mount = next(one for one in container(AGENT, recursive)["volumeMounts"] if one["name"] == "root")
    assert mount["recursiveReadOnly"] == "IfPossible" and "mountPropagation" not in mount
    without = {"agent.hostRoot.enabled": False}
    paths = {one["hostPath"]["path"] for one in volumes(AGENT, without).values() if "hostPath" in one}
    assert paths == {"/proc", "/sys"}
    assert all(one.get("readOnly") for one in container(AGENT, without)["volumeMounts"] if one["name"] != "buffer")


def test_agent_daemonset_opens_process_io_by_one_value():
    security = container(AGENT, {"agent.processIo": True})["securityContext"]
    assert security["runAsUser"] == 0
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_PTRACE", "DAC_READ_SEARCH"]}
    assert security["appArmorProfile"] == {"type": "Unconfined"}
    assert security["allowPrivilegeEscalation"] is False and security["readOnlyRootFilesystem"]
    options = {"agent.seLinuxOptions": {"type": "spc_t"}}
    assert container(AGENT, options)["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}


def test_agent_daemonset_runs_on_every_linux_node_that_is_a_machine():
    spec = pod(AGENT)
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert spec["tolerations"] == [{"operator": "Exists"}]
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {one["key"] for one in term["matchExpressions"]} == {"type", "nodestats.dev/no-agent"}
    update = only(AGENT, "DaemonSet", {"agent.maxUnavailable": 3})["spec"]["updateStrategy"]["rollingUpdate"]
    assert update == {"maxUnavailable": 3, "maxSurge": 0}


def test_agent_daemonset_keeps_what_waits_in_a_folder_of_limited_size():
    assert "--buffer-mib=64" in container(AGENT)["args"]
    assert "--state-dir=/buffer" in container(AGENT)["args"]
    assert volumes(AGENT)["buffer"]["emptyDir"] == {"sizeLimit": "104Mi"}
    values = {"agent.buffer.mib": 100, "agent.buffer.hostPath": "/var/lib/nodestats-agent"}
    assert "--buffer-mib=100" in container(AGENT, values)["args"]
    assert volumes(AGENT, values)["buffer"]["hostPath"]["path"] == "/var/lib/nodestats-agent"


# api-workload.yaml


def test_api_workload_keeps_its_database_on_a_claim():
    workload = only(API, "StatefulSet")["spec"]
    (claim,) = workload["volumeClaimTemplates"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
    assert workload["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"
    values = {"api.persistence": {"storageClass": "fast", "size": "1Ti", "whenDeleted": "Delete"}}
    workload = only(API, "StatefulSet", values)["spec"]
    assert workload["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"
    assert workload["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
    trial = {"api.persistence.enabled": False}
    assert "volumeClaimTemplates" not in only(API, "StatefulSet", trial)["spec"]
    assert volumes(API, trial)["data"] == {"name": "data", "emptyDir": {}}


def test_api_workload_speaks_to_a_database_server():
    workload = only(API, "Deployment", EVERYTHING)["spec"]
    assert workload["replicas"] == 2
    arguments = container(API, EVERYTHING)["args"]
    assert "--database=wss://database:8000" in arguments
    assert "--database-certificate-authority=/database/ca.crt" in arguments
    keys = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container(API, EVERYTHING)["env"]
            if one["name"].startswith("NODESTATS_")}
    assert keys == {
        "NODESTATS_DATABASE_USER": {"name": "database", "key": "user"},
        "NODESTATS_DATABASE_PASSWORD": {"name": "database", "key": "password"},
    }
    # Of the Secret only the authorities are a file.
    assert volumes(API, EVERYTHING)["database"]["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]


def test_api_workload_opens_the_ways_in_that_values_name():
    assert "--aggregated-listen=0.0.0.0:8444" in container(API)["args"]
    assert "--forwarded-listen=127.0.0.1:8081" in container(API)["args"]
    assert "--forwarded-processes" not in container(API)["args"]
    assert "--forwarded-processes" in container(API, {"api.portForward.processes": True})["args"]
    closed = {"api.portForward.enabled": False, "api.aggregation.enabled": False}
    assert not [one for one in container(API, closed)["args"] if "forwarded" in one or "aggregated" in one]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container(API)[probe]["httpGet"]["scheme"] == "HTTPS"


# api-service.yaml


def test_api_service_leads_to_the_api_s_pods_by_tls_alone():
    service = only("api-service.yaml", "Service")["spec"]
    assert [one["port"] for one in service["ports"]] == [443, 8444]
    labels = only(API, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    alone = only("api-service.yaml", "Service", {"api.aggregation.enabled": False})
    assert [one["port"] for one in alone["spec"]["ports"]] == [443]


def test_api_service_holds_up_no_drain_of_a_single_replica():
    assert "PodDisruptionBudget" not in kinds("api-service.yaml")
    assert "PodDisruptionBudget" in kinds("api-service.yaml", EVERYTHING)


# network-policies.yaml


def test_network_policies_let_in_what_each_program_needs():
    template = "network-policies.yaml"
    assert kinds(template) == []
    others = [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]
    values = {"networkPolicy": {"enabled": True, "from": others}}
    first, second = only(template, "NetworkPolicy", values, name="nodestats-api")["spec"]["ingress"]
    assert first["from"][1:] == others and first["ports"] == [{"port": "https"}]
    assert second == {"ports": [{"port": "aggregated"}]}
    for name in ("nodestats-agent", "nodestats-controller"):
        policy = only(template, "NetworkPolicy", values, name=name)["spec"]
        assert policy["ingress"] == [{"from": others, "ports": [{"port": "admin"}]}]
        alone = only(template, "NetworkPolicy", {"networkPolicy.enabled": True}, name=name)["spec"]
        assert alone["ingress"] == []


# controller-deployment.yaml


def test_controller_deployment_is_told_what_the_values_say():
    values = {
        "controller.poll": "7s", "controller.lostAfter": "9m", "controller.agentPatience": "3m",
        "nodeDefaults": {"interval": "30s"}, "agent.nodeSelector": {"pool": "a", "zone": "b"},
    }
    arguments = container(CONTROLLER, values)["args"]
    for argument in (
        "--api=https://nodestats-api.space.svc", "--poll=7s", "--lost-after=9m", "--agent-patience=3m",
        '--node-defaults={"interval":"30s"}', "--agent-nodes=pool=a,zone=b", "--aggregated",
    ):
        assert argument in arguments
    assert "--foreign-certificates" not in arguments
    assert "--aggregated" not in container(CONTROLLER, {"api.aggregation.enabled": False})["args"]


def test_controller_deployment_survives_a_node():
    spec = only(CONTROLLER, "Deployment")["spec"]
    assert spec["replicas"] == 2
    terms = spec["template"]["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    components = [one["podAffinityTerm"]["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] for one in terms]
    assert components == ["controller", "api"]
    assert {one["tolerationSeconds"] for one in pod(CONTROLLER)["tolerations"]} == {30}
    assert "PodDisruptionBudget" in kinds(CONTROLLER)
    assert "PodDisruptionBudget" not in kinds(CONTROLLER, {"controller.replicas": 1})


# agent-rbac.yaml, controller-rbac.yaml


def test_agent_rbac_is_about_monitorednodes_alone():
    rules = only("agent-rbac.yaml", "ClusterRole")["rules"]
    assert {group for rule in rules for group in rule["apiGroups"]} == {"nodestats.dev"}
    assert not {"list", "delete", "update"} & {verb for rule in rules for verb in rule["verbs"]}
    (subject,) = only("agent-rbac.yaml", "ClusterRoleBinding")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "nodestats-agent", "namespace": "space"}


def test_controller_rbac_deletes_and_makes_no_node():
    for rule in only("controller-rbac.yaml", "ClusterRole")["rules"]:
        if "nodes" in rule["resources"]:
            assert set(rule["verbs"]) <= {"get", "list", "watch"}
        assert "delete" not in rule["verbs"]


def test_pods_are_told_by_the_controller_where_a_value_says_so():
    def resources(values=None):
        rules = only("controller-rbac.yaml", "ClusterRole", values)["rules"]
        return {resource: rule["verbs"] for rule in rules for resource in rule["resources"]}

    def told(values=None):
        arguments = container(CONTROLLER, values)["args"]
        return [one for one in arguments if one.startswith("--pods")]

    assert resources()["pods"] == ["list", "watch"] and resources()["jobs"] == ["get"]
    assert told() == ["--pods=app,k8s-app,app.kubernetes.io/*"]
    assert told({"pods.labels": ["team"]}) == ["--pods=team"]
    off = {"pods.enabled": False}
    assert told(off) == [] and not {"pods", "replicasets", "jobs"} & set(resources(off))


# admission.yaml


def test_admission_is_for_agents_of_this_release():
    policy = only("admission.yaml", "ValidatingAdmissionPolicy")["spec"]
    assert policy["failurePolicy"] == "Fail"
    (condition,) = policy["matchConditions"]
    assert condition["expression"].endswith("== 'system:serviceaccount:space:nodestats-agent'")
    binding = only("admission.yaml", "ValidatingAdmissionPolicyBinding")["spec"]
    assert binding == {"policyName": "nodestats-own-node", "validationActions": ["Deny"]}


def test_admission_names_the_conditions_of_the_code():
    code = (ROOT / "crates/k8s/src/condition.rs").read_text()
    agent = re.search(r"pub mod agent \{(.*?)\n\}", code, re.DOTALL)[1]
    theirs = set(re.findall(r': &str = "(\w+)"', agent))
    policy = json.dumps(only("admission.yaml", "ValidatingAdmissionPolicy"))
    lists = re.findall(r"one\.type in \[(.*?)\]", policy)
    assert [set(re.findall(r"\w+", one)) for one in lists] == [theirs, theirs]


# aggregation.yaml, tls.yaml


def test_aggregation_is_off_as_a_whole_by_its_value():
    assert kinds("aggregation.yaml", {"api.aggregation.enabled": False}) == []
    role = only("aggregation.yaml", "ClusterRole")
    assert {tuple(rule.get("resourceNames", [])) for rule in role["rules"]} == {
        ("v1alpha1.stats.nodestats.dev",), ("nodestats-controller",), ("space",),
    }


def test_tls_has_a_secret_that_rules_can_name():
    assert "data" not in only("tls.yaml", "Secret")
    role = only("tls.yaml", "Role", name="nodestats-controller-tls")
    assert role["rules"][0]["verbs"] == ["get", "update"]


def test_tls_by_cert_manager_needs_an_issuer_and_writes_no_secret():
    issuer = {"name": "own", "kind": "ClusterIssuer"}
    values = {"tls.certManager": {"enabled": True, "issuerRef": issuer}}
    certificate = only("tls.yaml", "Certificate", values)["spec"]
    assert certificate["issuerRef"] == issuer and certificate["secretName"] == "nodestats-tls"
    assert "nodestats-api.space.svc" in certificate["dnsNames"]
    assert "Secret" not in kinds("tls.yaml", values)
    assert "--foreign-certificates" in container(CONTROLLER, values)["args"]
    role = only("tls.yaml", "Role", values, name="nodestats-controller-tls")
    assert role["rules"][0]["verbs"] == ["get"]


# api-rbac.yaml, viewer-roles.yaml


def test_api_rbac_asks_about_others_and_nothing_else():
    rules = only("api-rbac.yaml", "ClusterRole")["rules"]
    assert [rule["resources"] for rule in rules] == [["tokenreviews"], ["subjectaccessreviews"]]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"create"}
    assert "--kubernetes-auth=space" in container(API)["args"]
    insecure = {"api.insecureNoAuth": True}
    assert kinds("api-rbac.yaml", insecure) == []
    assert "--insecure-no-auth" in container(API, insecure)["args"]


def test_viewer_roles_tell_processes_from_the_rest():
    viewer = only("viewer-roles.yaml", "ClusterRole", name="nodestats-viewer")
    assert viewer["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    ours = [rule for rule in viewer["rules"] if rule["apiGroups"] == ["stats.nodestats.dev"]]
    resources = {resource for rule in ours for resource in rule["resources"]}
    for rule in ours:
        whole = {"nodes": ["get", "list"], "pods": ["get", "list"], "events": ["list"]}
        assert rule["verbs"] == whole.get(rule["resources"][0], ["get"])
    code = (ROOT / "crates/wire/src/routes.rs").read_text()
    # The last is no path of the cluster's own API.
    wanted = {"nodes", "pods", "events", "top", "nodes/metrics"}
    for resource, constant in [("nodes", "DETAILS"), ("pods", "POD_DETAILS")]:
        details = re.search(rf"const {constant}: .*? = \[(.*?)\]", code, re.DOTALL)[1]
        wanted |= {f"{resource}/{detail}" for detail in re.findall(r'"(\w+)"', details)}
    assert resources == wanted - {"nodes/proc", "pods/proc"}
    processes = only("viewer-roles.yaml", "ClusterRole", name="nodestats-process-viewer")
    assert [rule["resources"] for rule in processes["rules"]] == [["nodes/proc", "pods/proc"]]


@pytest.mark.parametrize("template", [AGENT, CONTROLLER, "tests/ask.yaml"])
def test_all_programs_show_a_token_that_is_for_the_api_alone(template):
    spec = only(template, "Pod")["spec"] if template.startswith("tests/") else pod(template)
    (token,) = [one for one in spec["volumes"] if one["name"] == "token"]
    assert token["projected"]["sources"] == [
        {"serviceAccountToken": {"audience": "nodestats", "expirationSeconds": 600, "path": "token"}}
    ]
    assert [one for one in spec["containers"][0]["args"] if one.endswith("token-file=/token/token")]


# crd.yaml, monitoring.yaml, tests/ask.yaml


def test_crd_is_the_one_of_the_code_and_kept_by_a_value():
    (code,) = yaml.safe_load_all((ROOT / "crds/monitorednodes.nodestats.dev.yaml").read_text())
    assert only("crd.yaml", "CustomResourceDefinition") == code
    kept = only("crd.yaml", "CustomResourceDefinition", {"crds.keep": True})
    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert kinds("crd.yaml", {"crds.install": False}) == []


def test_monitoring_finds_ports_that_are_there():
    assert kinds("monitoring.yaml") == []
    monitor = only("monitoring.yaml", "PodMonitor", {"podMonitor": {"enabled": True, "labels": {"release": "x"}}})
    assert monitor["metadata"]["labels"]["release"] == "x"
    ports = {port["name"] for template in (AGENT, API, CONTROLLER) for port in container(template)["ports"]}
    assert {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]} <= ports


def test_monitoring_rules_are_those_of_the_files_and_carry_the_labels_asked_for():
    values = {"prometheusRules": {"enabled": True, "labels": {"release": "x"}}}
    for name in ("nodestats", "nodes"):
        rule = only("monitoring.yaml", "PrometheusRule", values, name=f"nodestats-{name}")
        assert rule["metadata"]["labels"]["release"] == "x"
        assert rule["spec"] == yaml.safe_load((CHART / f"files/rules/{name}.yaml").read_text())


def test_monitoring_s_dashboard_is_found_by_its_label_and_is_json():
    made = only("monitoring.yaml", "ConfigMap", {"dashboard.enabled": True})
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = made["data"].values()
    dashboard = json.loads(text)
    assert dashboard == json.loads((CHART / "files/dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 15


def variables(template, values):
    return {one["name"]: one.get("value") for one in container(template, values).get("env") or []}


def test_traces_go_where_the_values_say_and_nowhere_by_default():
    for template in (AGENT, API, CONTROLLER):
        assert not [name for name in variables(template, {}) if name.startswith("OTEL_")], template
    values = {"telemetry.otlp": {"endpoint": "http://c:4318", "sampleRatio": 0.01, "resourceAttributes": "a=b"}}
    for template, service in ((AGENT, "nodestats-agent"), (API, "nodestats-api"), (CONTROLLER, "nodestats-controller")):
        found = variables(template, values)
        assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://c:4318", template
        assert found["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
        assert found["OTEL_SERVICE_NAME"] == service
        assert found["OTEL_METRICS_EXPORTER"] == "none"
        assert float(found["OTEL_TRACES_SAMPLER_ARG"]) == 0.01
        assert found["OTEL_RESOURCE_ATTRIBUTES"].endswith(",a=b")
    # gRPC is for the API and the controller; agents go elsewhere, or nowhere.
    grpc = {"telemetry.otlp": {"endpoint": "http://c:4317", "protocol": "grpc"}}
    assert variables(API, grpc)["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc"
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in variables(AGENT, grpc)
    grpc["telemetry.otlp"]["agentEndpoint"] = "http://c:4318"
    assert variables(AGENT, grpc)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://c:4318"
    assert variables(AGENT, grpc)["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
    # The collector's authority is mounted where it is named.
    with_tls = {"telemetry.otlp": {"endpoint": "https://c:4318", "caConfigMap": "ca"}}
    for template in (AGENT, API, CONTROLLER):
        path = variables(template, with_tls)["OTEL_EXPORTER_OTLP_CERTIFICATE"]
        mounts = container(template, with_tls)["volumeMounts"]
        (mount,) = [one for one in mounts if path.startswith(one["mountPath"] + "/")]
        volumes = pod(template, with_tls)["volumes"]
        (volume,) = [one for one in volumes if one["name"] == mount["name"]]
        assert volume["configMap"]["name"] == "ca", template
    for wrong in ({"protocol": "http/json"}, {"sampleRatio": 2}, {"endpoint": "c:4318"}):
        with pytest.raises(Refused):
            render({"telemetry.otlp": wrong})


def test_ask_is_a_test_that_leaves_nothing():
    for one in render()["tests/ask.yaml"]:
        annotations = one["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "test"
        assert set(annotations["helm.sh/hook-delete-policy"].split(",")) == {"before-hook-creation", "hook-succeeded"}


# NOTES.txt


def test_notes_say_what_is_true_of_the_values(tmp_path):
    # helm shows notes only of what it installs: here they are an object.
    copy = tmp_path / "nodestats"
    shutil.copytree(CHART, copy)
    shutil.copy(TEMPLATES / "NOTES.txt", copy / "NOTES.txt")
    (copy / "templates/notes.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\n"
        'data: {text: {{ tpl (.Files.Get "NOTES.txt") . | toJson }}}\n'
    )

    def notes(values=None):
        return only("notes.yaml", "ConfigMap", values, chart=str(copy))["data"]["text"]

    text = notes()
    assert "kubectl nodestats doctor" in text
    assert "pod-security.kubernetes.io/enforce=privileged" in text
    assert "`helm uninstall` keeps it" in text and "removes the definition" in text
    assert "run as root" not in text
    text = notes({"crds.keep": True, "api.persistence.whenDeleted": "Delete", "agent.processIo": True})
    assert "removes it" in text and "keeps the definition" in text and "run as root" in text
    closed = {"api.aggregation.enabled": False, "api.portForward.enabled": False}
    assert "kubectl nodestats" not in notes(closed)
    assert "History is lost" in notes({"api.persistence.enabled": False})
