//! kubectl against `outrigger up` with embedded clusters: everything that the README promises, as people type it.

use outrigger_tests::kubectl::Kubectl;
use outrigger_tests::server::Outrigger;

const CRD: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.shop.example.com}
spec:
  group: shop.example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    additionalPrinterColumns:
    - {name: Color, type: string, jsonPath: .spec.color}
    selectableFields: [{jsonPath: .spec.color}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            description: What the widget shall be.
            properties:
              color: {type: string, description: The color of its paint.}
              replicas: {type: integer}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"#;

fn widget(namespace: &str, name: &str, color: &str) -> String {
    format!(
        "apiVersion: shop.example.com/v1\nkind: Widget\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{color: {color}}}}}\nspec: {{color: {color}, replicas: 1}}\n---\n"
    )
}

fn server() -> (Outrigger, Kubectl) {
    let server = Outrigger::up(&[]);
    let kubectl = Kubectl::new(&server.kubeconfig());
    (server, kubectl)
}

fn with_widgets() -> (Outrigger, Kubectl) {
    let (server, kubectl) = server();
    let _ = kubectl.ok_with(&["apply", "-f", "-"], CRD);
    let _ = kubectl.ok(&[
        "wait",
        "--for=condition=Established",
        "crd/widgets.shop.example.com",
        "--timeout=10s",
    ]);
    for namespace in ["team-a", "team-b", "team-c"] {
        let _ = kubectl.ok(&["create", "namespace", namespace]);
    }
    (server, kubectl)
}

#[test]
fn a_new_server_has_its_kinds_namespaces_and_clusters() {
    let (_server, kubectl) = server();
    let resources = kubectl.ok(&["api-resources"]);
    for kind in [
        "namespaces",
        "secrets",
        "events",
        "leases",
        "customresourcedefinitions",
        "workloadclusters",
        "applications",
    ] {
        assert!(resources.contains(kind), "{kind}: {resources}");
    }
    let namespaces = kubectl.ok(&["get", "namespaces", "-o", "name"]);
    assert!(
        namespaces.contains("namespace/default") && namespaces.contains("namespace/kube-system"),
        "{namespaces}"
    );
    let clusters = kubectl.eventually(&["get", "workloadclusters"], |out| {
        out.matches("True").count() == 3
    });
    assert!(
        clusters.contains("cluster-1") && clusters.contains("SLOT"),
        "{clusters}"
    );
    assert!(kubectl.ok(&["version"]).contains("Server Version: v1."));
}

#[test]
fn the_example_of_the_readme() {
    let (_server, kubectl) = server();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/application.yaml");
    let applied = kubectl.ok(&["apply", "-f", example]);
    assert!(applied.contains("created"), "{applied}");
    let table = kubectl.ok(&["get", "apps", "-A"]);
    assert!(
        table.contains("ENDPOINT") && table.contains("READY") && table.contains("storefront"),
        "{table}"
    );
    assert!(kubectl.ok(&["apply", "-f", example]).contains("unchanged"));
}

#[test]
fn a_crd_is_served_at_once_and_its_objects_behave() {
    let (_server, kubectl) = with_widgets();
    let three = ["a", "b", "c"]
        .map(|team| widget(&format!("team-{team}"), "first", "red"))
        .concat();
    assert_eq!(
        kubectl
            .ok_with(&["apply", "-f", "-"], &three)
            .matches("created")
            .count(),
        3
    );
    assert_eq!(
        kubectl
            .ok_with(&["apply", "-f", "-"], &three)
            .matches("unchanged")
            .count(),
        3
    );

    let table = kubectl.ok(&["get", "wd", "-A"]);
    assert!(
        table.contains("COLOR") && table.matches("red").count() == 3,
        "{table}"
    );
    assert!(
        kubectl
            .ok(&["get", "wd", "first", "-n", "team-a", "-o", "yaml"])
            .contains("color: red")
    );
    assert_eq!(
        kubectl.ok(&[
            "get",
            "wd",
            "-n",
            "team-a",
            "-o",
            "jsonpath={.items[*].spec.color}"
        ]),
        "red"
    );

    let _ = kubectl.ok(&["label", "wd", "first", "-n", "team-a", "tier=gold"]);
    assert!(
        kubectl
            .ok(&["get", "wd", "-A", "-l", "tier=gold", "-o", "name"])
            .contains("widget.shop.example.com/first")
    );
    let _ = kubectl.ok(&["annotate", "wd", "first", "-n", "team-a", "note=hello"]);
    let _ = kubectl.ok(&[
        "patch",
        "wd",
        "first",
        "-n",
        "team-a",
        "--type=merge",
        "-p",
        r#"{"spec":{"color":"blue"}}"#,
    ]);
    let json_patch = r#"[{"op":"replace","path":"/spec/color","value":"green"}]"#;
    let _ = kubectl.ok(&[
        "patch",
        "wd",
        "first",
        "-n",
        "team-b",
        "--type=json",
        "-p",
        json_patch,
    ]);
    let green = kubectl.ok(&[
        "get",
        "wd",
        "-A",
        "--field-selector",
        "spec.color=green",
        "-o",
        "name",
    ]);
    assert_eq!(green.trim(), "widget.shop.example.com/first");
    let refused = kubectl.fails(
        &[
            "patch",
            "wd",
            "first",
            "-n",
            "team-a",
            "--type=strategic",
            "-p",
            "{}",
        ],
        "",
    );
    assert!(
        refused.contains("UnsupportedMediaType") || refused.contains("media type"),
        "{refused}"
    );

    let _ = kubectl.ok(&["scale", "wd/first", "-n", "team-a", "--replicas=5"]);
    assert_eq!(
        kubectl.ok(&[
            "get",
            "wd",
            "first",
            "-n",
            "team-a",
            "-o",
            "jsonpath={.spec.replicas}"
        ]),
        "5"
    );
    let status = r#"{"status":{"phase":"Running"}}"#;
    let _ = kubectl.ok(&[
        "patch",
        "wd",
        "first",
        "-n",
        "team-a",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ]);
    let _ = kubectl.ok(&[
        "wait",
        "wd/first",
        "-n",
        "team-a",
        "--for=jsonpath={.status.phase}=Running",
        "--timeout=10s",
    ]);
    let described = kubectl.ok(&["describe", "wd", "first", "-n", "team-a"]);
    assert!(
        described.contains("Color:") && described.contains("tier=gold"),
        "{described}"
    );
}

#[test]
fn explain_diff_and_edit() {
    let (_server, kubectl) = with_widgets();
    let explained = kubectl.ok(&["explain", "widgets.spec.color"]);
    assert!(explained.contains("The color of its paint."), "{explained}");
    assert!(
        kubectl
            .ok(&["explain", "namespaces.metadata"])
            .contains("ObjectMeta")
    );

    let _ = kubectl.ok_with(&["apply", "-f", "-"], &widget("team-a", "first", "red"));
    let diff = kubectl.output(&["diff", "-f", "-"], &widget("team-a", "first", "blue"));
    let text = String::from_utf8_lossy(&diff.stdout);
    assert_eq!(
        diff.status.code(),
        Some(1),
        "{text}{}",
        String::from_utf8_lossy(&diff.stderr)
    );
    assert!(
        text.contains("-  color: red") && text.contains("+  color: blue"),
        "{text}"
    );

    let edited = kubectl.ok_in(
        &["edit", "wd", "first", "-n", "team-a"],
        "",
        &[("KUBE_EDITOR", "sed -i s/red/violet/")],
    );
    assert!(edited.contains("edited"), "{edited}");
    assert_eq!(
        kubectl.ok(&[
            "get",
            "wd",
            "first",
            "-n",
            "team-a",
            "-o",
            "jsonpath={.spec.color}"
        ]),
        "violet"
    );
}

#[test]
fn mistakes_get_kubernetes_answers() {
    let (_server, kubectl) = with_widgets();
    let error = kubectl.fails(&["get", "wd", "none", "-n", "team-a"], "");
    assert!(
        error.contains(r#"Error from server (NotFound): widgets.shop.example.com "none" not found"#),
        "{error}"
    );
    let error = kubectl.fails(&["create", "-f", "-"], &widget("nowhere", "first", "red"));
    assert!(error.contains(r#"namespaces "nowhere" not found"#), "{error}");
    let _ = kubectl.ok_with(&["create", "-f", "-"], &widget("team-a", "first", "red"));
    let error = kubectl.fails(&["create", "-f", "-"], &widget("team-a", "first", "red"));
    assert!(error.contains("AlreadyExists"), "{error}");
    let error = kubectl.fails(&["create", "-f", "-"], &widget("team-a", "No_Name", "red"));
    assert!(error.contains("Invalid") || error.contains("invalid"), "{error}");
    let error = kubectl.fails(&["get", "wd", "-l", "a=(b"], "");
    assert!(
        error.contains("BadRequest") || error.contains("unable to parse"),
        "{error}"
    );
}

#[test]
fn server_kinds_speak_protobuf_and_strategic_merge() {
    let (_server, kubectl) = server();
    let _ = kubectl.ok(&["create", "namespace", "extra"]);
    let _ = kubectl.ok(&[
        "create",
        "secret",
        "generic",
        "s",
        "-n",
        "extra",
        "--from-literal=key=value",
    ]);
    assert_eq!(
        kubectl.ok(&["get", "secret", "s", "-n", "extra", "-o", "jsonpath={.data.key}"]),
        "dmFsdWU="
    );
    let _ = kubectl.ok(&[
        "patch",
        "namespace",
        "extra",
        "-p",
        r#"{"metadata":{"labels":{"x":"y"}}}"#,
    ]);
    assert!(
        kubectl
            .ok(&["get", "ns", "-l", "x=y", "-o", "name"])
            .contains("namespace/extra")
    );
    assert!(kubectl.ok(&["describe", "namespace", "extra"]).contains("Active"));
}

#[test]
fn a_watch_shows_what_happens() {
    let (_server, kubectl) = with_widgets();
    let mut watch = kubectl.start(&["get", "wd", "-A", "-w", "--output-watch-events"]);
    let _ = kubectl.ok_with(&["create", "-f", "-"], &widget("team-a", "one", "red"));
    watch.line(|line| line.starts_with("ADDED") && line.contains("one"));
    let _ = kubectl.ok_with(&["apply", "-f", "-"], &widget("team-a", "one", "blue"));
    watch.line(|line| line.starts_with("MODIFIED") && line.contains("blue"));
    let _ = kubectl.ok_with(&["create", "-f", "-"], &widget("team-c", "two", "red"));
    watch.line(|line| line.starts_with("ADDED") && line.contains("two"));
    let _ = kubectl.ok(&["delete", "wd", "one", "-n", "team-a"]);
    watch.line(|line| line.starts_with("DELETED") && line.contains("one"));
}

#[test]
fn a_changed_crd_is_served_without_restart() {
    let (_server, kubectl) = with_widgets();
    let _ = kubectl.ok_with(&["apply", "-f", "-"], &widget("team-a", "first", "red"));
    let changed = CRD.replace(
        "{name: Color, type: string, jsonPath: .spec.color}",
        "{name: Paint, type: string, jsonPath: .spec.color}",
    );
    let _ = kubectl.ok_with(&["apply", "-f", "-"], &changed);
    let table = kubectl.eventually(&["get", "wd", "-A"], |out| out.contains("PAINT"));
    assert!(table.contains("red"), "{table}");
}
