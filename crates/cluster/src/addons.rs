//! What runs inside a full cluster from its begin: the rights of kube-proxy, DNS, and storage.

use serde_json::{Value, json};

use crate::{Cluster, images, nodes};

/// The class of the static local volumes, the default one.
const STORAGE_CLASS: &str = "local";

pub(crate) fn apply(cluster: &Cluster) -> anyhow::Result<()> {
    let mut items = vec![proxy_rights(), storage_class()];
    items.extend(volumes(cluster));
    items.extend(dns());
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    cluster.kubectl_with(&["apply", "-f", "-"], &list.to_string())?;
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "rollout",
        "status",
        "deployment/coredns",
        "--timeout=60s",
    ])?;
    Ok(())
}

fn proxy_rights() -> Value {
    binding(
        "kube-proxy",
        "system:node-proxier",
        &json!({
            "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "system:kube-proxy",
        }),
    )
}

fn binding(name: &str, role: &str, subject: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    })
}

fn storage_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        // A claim is bound where its pod is placed: a local volume is nowhere else.
        "volumeBindingMode": "WaitForFirstConsumer",
    })
}

fn volumes(cluster: &Cluster) -> Vec<Value> {
    let mut volumes = Vec::new();
    for node in &cluster.nodes {
        for volume in 0..nodes::VOLUMES {
            volumes.push(json!({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {"name": format!("{}-{volume}", node.name)},
                "spec": {
                    "capacity": {"storage": "10Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Delete",
                    "storageClassName": STORAGE_CLASS,
                    "local": {"path": node.volumes(&cluster.state).join(volume.to_string())},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node.name]},
                    ]}]}},
                },
            }));
        }
    }
    volumes
}

/// Zone of the cluster's names. Nothing is asked outside: there is no outside.
const COREFILE: &str = ".:53 {
    errors
    ready
    health
    kubernetes cluster.local in-addr.arpa ip6.arpa
    cache 5
}
";

fn dns() -> Vec<Value> {
    let labels = json!({"k8s-app": "kube-dns"});
    let meta = |name: &str| json!({"name": name, "namespace": "kube-system"});
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    });
    let subject = json!({"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"});
    let container = json!({
        "name": "coredns", "image": images::DNS, "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": true}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("coredns"),
        "spec": {
            "replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "serviceAccountName": "coredns",
                // DNS does not ask itself.
                "dnsPolicy": "Default",
                "tolerations": [{"operator": "Exists"}],
                "containers": [container],
                "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
            }},
        },
    });
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol});
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": meta("kube-dns"),
        "spec": {
            "selector": labels, "clusterIP": nodes::DNS,
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    });
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("coredns")}),
        role,
        binding("coredns", "coredns", &subject),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("coredns"),
            "data": {"Corefile": COREFILE},
        }),
        deployment,
        service,
    ]
}
