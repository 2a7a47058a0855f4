package policy

import (
	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"chaperone.dev/chaperone/internal/access"
)

const objectField = "object"

// k8sType is one request to a Kubernetes API server. object holds the facts of
// what it would store.
func k8sType(strs *cel.Type, object *objectType) *objectType {
	text := func(name, doc string, read func(*access.K8s) string) field {
		return field{name, cel.StringType, doc, ofK8s(func(k *access.K8s, box boxer) any { return box.str(read(k)) })}
	}
	list := func(name, doc string, read func(*access.K8s) []string) field {
		return field{name, strs, doc, ofK8s(func(k *access.K8s, box boxer) any { return box.list(read(k)) })}
	}
	flag := func(name, doc string, read func(*access.K8s) bool) field {
		return field{name, cel.BoolType, doc, ofK8s(func(k *access.K8s, _ boxer) any { return types.Bool(read(k)) })}
	}
	return newObjectType("k8s", "chaperone.K8s",
		text("verb", "get, list, watch, create, update, patch, delete, deletecollection", func(k *access.K8s) string { return k.Verb }),
		text("group", `API group; "" is the core`, func(k *access.K8s) string { return k.Group }),
		text("version", "version of the group", func(k *access.K8s) string { return k.Version }),
		text("resource", `plural; "" for a path that is none`, func(k *access.K8s) string { return k.Resource }),
		text("subresource", "log, exec, scale, …", func(k *access.K8s) string { return k.Subresource }),
		text("namespace", `"" for none, or all`, func(k *access.K8s) string { return k.Namespace }),
		text("name", `"" for all of them`, func(k *access.K8s) string { return k.Name }),
		text("path", "path that the API server receives", func(k *access.K8s) string { return k.Path }),
		text("label_selector", "as the client sent it", func(k *access.K8s) string { return k.LabelSelector }),
		text("field_selector", "as the client sent it", func(k *access.K8s) string { return k.FieldSelector }),
		flag("dry_run", "it is known to store nothing: never of exec and the like, a token, or an API group that is not Kubernetes' own", func(k *access.K8s) bool { return k.DryRun }),
		flag("read_only", "it is known to change nothing and to lead into no container", func(k *access.K8s) bool { return k.ReadOnly }),
		list("powers", "exec, token, escalate, …: what it can do beyond its object", func(k *access.K8s) []string { return k.Powers }),
		list("command", "the command of exec", func(k *access.K8s) []string { return k.Command }),
		text("container", `of exec and attach; "" is the pod's default`, func(k *access.K8s) string { return k.Container }),
		flag("terminal", "exec and attach: with a terminal", func(k *access.K8s) bool { return k.Terminal }),
		flag("stdin", "exec and attach: it can be written to", func(k *access.K8s) bool { return k.Stdin }),
		field{bodyField, cel.DynType, "the decoded body; unknown unless whole", ofK8s(func(k *access.K8s, box boxer) any {
			if k.BodyState != access.BodyWhole {
				return box.unknown["k8s.body"]
			}
			return box.adapter.NativeToValue(k.Body)
		})},
		field{objectField, object.celType, "facts of the object that it would store", ofK8s(func(k *access.K8s, box boxer) any {
			return newObject(object, k.Object, box)
		})},
	)
}

func k8sObjectType(strs *cel.Type) *objectType {
	fact := func(name string, kind *cel.Type, doc string, read func(*access.K8sObject, boxer) any) field {
		return field{name, kind, doc, func(source any, box boxer) any {
			if o := source.(*access.K8sObject); o.Knows(name) {
				return read(o, box)
			}
			return box.unknown["k8s.object."+name]
		}}
	}
	text := func(name, doc string, read func(*access.K8sObject) string) field {
		return fact(name, cel.StringType, doc, func(o *access.K8sObject, box boxer) any { return box.str(read(o)) })
	}
	list := func(name, doc string, read func(*access.K8sObject) []string) field {
		return fact(name, strs, doc, func(o *access.K8sObject, box boxer) any { return box.list(read(o)) })
	}
	return newObjectType("k8s.object", "chaperone.K8sObject",
		text("kind", "Pod, Deployment, …", func(o *access.K8sObject) string { return o.Kind }),
		text("type", "of a Secret or a Service", func(o *access.K8sObject) string { return o.Type }),
		fact("privileged", cel.BoolType, "a container is privileged", func(o *access.K8sObject, _ boxer) any { return types.Bool(o.Privileged) }),
		list("host_namespaces", "network, pid, ipc of the node", func(o *access.K8sObject) []string { return o.HostNamespaces }),
		list("host_paths", "folders of the node", func(o *access.K8sObject) []string { return o.HostPaths }),
		list("capabilities", "that are added", func(o *access.K8sObject) []string { return o.Capabilities }),
		list("images", "of its containers and volumes", func(o *access.K8sObject) []string { return o.Images }),
		text("service_account", `"" is the namespace's default`, func(o *access.K8sObject) string { return o.ServiceAccount }),
		list("secrets", "Secrets that its containers can read", func(o *access.K8sObject) []string { return o.Secrets }),
		fact("replicas", cel.IntType, "how many pods", func(o *access.K8sObject, _ boxer) any { return types.Int(o.Replicas) }),
		list("verbs", "that a role gives", func(o *access.K8sObject) []string { return o.Verbs }),
	)
}
