package kube

import (
	"encoding/json"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"

	"chaperone.dev/chaperone/internal/access"
)

// A workload is a resource with a pod in it.
type workload struct {
	kind     string
	spec     []string // where the pod's spec stands
	replicas bool     // spec.replicas, 1 when left out
}

// workloads by group and resource.
var workloads = map[string]workload{
	"/pods":                   {"Pod", []string{"spec"}, false},
	"/podtemplates":           {"PodTemplate", []string{"template", "spec"}, false},
	"/replicationcontrollers": {"ReplicationController", []string{"spec", "template", "spec"}, true},
	"apps/deployments":        {"Deployment", []string{"spec", "template", "spec"}, true},
	"apps/replicasets":        {"ReplicaSet", []string{"spec", "template", "spec"}, true},
	"apps/statefulsets":       {"StatefulSet", []string{"spec", "template", "spec"}, true},
	"apps/daemonsets":         {"DaemonSet", []string{"spec", "template", "spec"}, false},
	"batch/jobs":              {"Job", []string{"spec", "template", "spec"}, false},
	"batch/cronjobs":          {"CronJob", []string{"spec", "jobTemplate", "spec", "template", "spec"}, false},
}

// groups are those of Kubernetes itself: their other resources hold no pod.
// What the objects of other groups lead to, their own servers know.
var groups = []string{"", "apps", "batch", "autoscaling", "policy", rbac, "networking.k8s.io", "storage.k8s.io", "coordination.k8s.io",
	"discovery.k8s.io", "events.k8s.io", "certificates.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io",
	"admissionregistration.k8s.io", "flowcontrol.apiserver.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "node.k8s.io",
	"scheduling.k8s.io"}

// IsForeign reports whether the request is about a resource that is not
// Kubernetes' own.
func IsForeign(k *access.K8s) bool { return k.Resource != "" && !slices.Contains(groups, k.Group) }

// objectOf finds the facts of the object that the request would store.
func objectOf(k *access.K8s) *access.K8sObject {
	switch {
	case k.Verb != "create" && k.Verb != "update" && k.Verb != "patch", k.Group == "" && connects[k.Resource+"/"+k.Subresource] != "":
		return &access.K8sObject{} // nothing is stored
	case k.BodyState == access.BodyNone:
		return &access.K8sObject{}
	case k.BodyState != access.BodyWhole:
		return unknownObject(access.K8sFacts()...)
	}
	object, ok := k.Body.(map[string]any)
	if k.Subresource == "scale" && ok && k.ContentType != jsonPatchType {
		return scaleOf(object)
	}
	if k.Verb == "patch" {
		o := unknownObject(access.K8sFacts()...)
		o.Privileged = saysPrivileged(k.Body)
		if k.ContentType == applyPatchType { // creates what is not there
			o.Type, _ = object["type"].(string)
		}
		return o
	}
	if !ok || IsForeign(k) {
		return unknownObject(access.K8sFacts()...)
	}
	return wholeObject(k, object)
}

func unknownObject(facts ...string) *access.K8sObject { return &access.K8sObject{Unknown: facts} }

func scaleOf(object map[string]any) *access.K8sObject {
	o := &access.K8sObject{Kind: "Scale"}
	n, ok := member(object, "spec", "replicas").(json.Number)
	replicas, err := n.Int64()
	if o.Replicas = replicas; !ok || err != nil {
		o.Unknown = []string{"replicas"}
	}
	return o
}

// wholeObject reads an object of Kubernetes' own API.
func wholeObject(k *access.K8s, object map[string]any) *access.K8sObject {
	kind, _ := object["kind"].(string)
	version, _ := object["apiVersion"].(string)
	own := k.Version
	if k.Group != "" {
		own = k.Group + "/" + k.Version
	}
	w, carries := workloads[k.Group+"/"+k.Resource]
	carries = carries && slices.Contains([]string{"", "status", "ephemeralcontainers", "resize"}, k.Subresource)
	if k.Subresource == "" && version != "" && version != own || carries && kind != "" && kind != w.kind {
		return unknownObject(access.K8sFacts()...) // the API server has its own idea of what to make of it
	}
	o := &access.K8sObject{Kind: kind}
	if carries {
		o.Kind = w.kind
		podOf(o, object, w)
		return o
	}
	switch k.Group + "/" + k.Resource {
	case "/secrets", "/services":
		readType(o, k.Resource, object)
	case "/persistentvolumes":
		readVolume(o, object)
	case rbac + "/roles", rbac + "/clusterroles":
		readRole(o, object)
	}
	return o
}

// readType reads the type where the resource has it; elsewhere the API server
// does not look.
func readType(o *access.K8sObject, resource string, object map[string]any) {
	at, usual := []string{"type"}, "Opaque"
	if resource == "services" {
		at, usual = []string{"spec", "type"}, "ClusterIP"
	}
	value := member(object, at...)
	t, ok := value.(string)
	switch {
	case value != nil && !ok:
		o.Unknown = []string{"type"}
	case t == "":
		o.Type = usual
	default:
		o.Type = t
	}
}

func readVolume(o *access.K8sObject, object map[string]any) {
	for _, source := range []string{"hostPath", "local"} {
		switch path := member(object, "spec", source, "path").(type) {
		case string:
			o.HostPaths = append(o.HostPaths, path)
		case nil:
		default:
			o.Unknown = []string{"host_paths"}
		}
	}
}

// readRole lists the verbs that a role's rules give. A role that is put
// together from others has theirs.
func readRole(o *access.K8sObject, object map[string]any) {
	rules, ok := object["rules"].([]any)
	if object["rules"] != nil && !ok || object["aggregationRule"] != nil {
		o.Unknown = []string{"verbs"}
		return
	}
	for _, r := range rules {
		rule, _ := r.(map[string]any)
		verbs, _ := rule["verbs"].([]any)
		if names := texts(rule["verbs"]); len(names) == len(verbs) && rule != nil {
			o.Verbs = append(o.Verbs, names...)
		} else {
			o.Unknown = []string{"verbs"}
		}
	}
	o.Verbs = sorted(o.Verbs)
}

// podOf reads the pod in a workload by Kubernetes' own types, strictly: a field
// that they do not have could mean anything.
func podOf(o *access.K8sObject, object map[string]any, w workload) {
	var pod corev1.PodSpec
	spec, err := json.Marshal(member(object, w.spec...))
	if err == nil {
		var strict []error
		if strict, err = kjson.UnmarshalStrict(spec, &pod); len(strict) > 0 {
			err = strict[0]
		}
	}
	if err != nil {
		*o = *unknownObject(access.K8sFacts()...)
		o.Privileged = saysPrivileged(object)
		return
	}
	if w.replicas {
		o.Replicas = 1
		if n := member(object, "spec", "replicas"); n != nil {
			number, ok := n.(json.Number)
			if o.Replicas, err = number.Int64(); !ok || err != nil {
				o.Unknown = []string{"replicas"}
			}
		}
	}
	readPod(o, &pod)
}

func readPod(o *access.K8sObject, pod *corev1.PodSpec) {
	o.ServiceAccount = pod.ServiceAccountName
	if o.ServiceAccount == "" {
		o.ServiceAccount = pod.DeprecatedServiceAccount
	}
	for name, shared := range map[string]bool{"network": pod.HostNetwork, "pid": pod.HostPID, "ipc": pod.HostIPC} {
		if shared {
			o.HostNamespaces = append(o.HostNamespaces, name)
		}
	}
	if c := pod.SecurityContext; c != nil && c.WindowsOptions != nil && isTrue(c.WindowsOptions.HostProcess) {
		o.Privileged = true
	}
	for i := range pod.Volumes {
		readPodVolume(o, &pod.Volumes[i])
	}
	for _, containers := range [][]corev1.Container{pod.InitContainers, pod.Containers} {
		for i := range containers {
			readContainer(o, &containers[i])
		}
	}
	for i := range pod.EphemeralContainers {
		c := corev1.Container(pod.EphemeralContainers[i].EphemeralContainerCommon)
		readContainer(o, &c)
	}
	for _, list := range []*[]string{&o.HostNamespaces, &o.HostPaths, &o.Capabilities, &o.Images, &o.Secrets} {
		*list = sorted(*list)
	}
}

func readPodVolume(o *access.K8sObject, v *corev1.Volume) {
	if v.HostPath != nil {
		o.HostPaths = append(o.HostPaths, v.HostPath.Path)
	}
	if v.Secret != nil {
		o.Secrets = append(o.Secrets, v.Secret.SecretName)
	}
	if v.Image != nil {
		o.Images = append(o.Images, v.Image.Reference)
	}
	if v.Projected != nil {
		for _, source := range v.Projected.Sources {
			if source.Secret != nil {
				o.Secrets = append(o.Secrets, source.Secret.Name)
			}
		}
	}
}

func readContainer(o *access.K8sObject, c *corev1.Container) {
	o.Images = append(o.Images, c.Image)
	if s := c.SecurityContext; s != nil {
		o.Privileged = o.Privileged || isTrue(s.Privileged) || s.WindowsOptions != nil && isTrue(s.WindowsOptions.HostProcess)
		if s.Capabilities != nil {
			for _, added := range s.Capabilities.Add {
				o.Capabilities = append(o.Capabilities, strings.TrimPrefix(strings.ToUpper(string(added)), "CAP_"))
			}
		}
	}
	for _, env := range c.Env {
		if env.ValueFrom != nil && env.ValueFrom.SecretKeyRef != nil {
			o.Secrets = append(o.Secrets, env.ValueFrom.SecretKeyRef.Name)
		}
	}
	for _, from := range c.EnvFrom {
		if from.SecretRef != nil {
			o.Secrets = append(o.Secrets, from.SecretRef.Name)
		}
	}
}

func isTrue(b *bool) bool { return b != nil && *b }

// saysPrivileged reports whether privileged or hostProcess stands anywhere in a
// body with anything but false or null, or as the end of a patch's path.
func saysPrivileged(v any) bool {
	switch v := v.(type) {
	case []any:
		return slices.ContainsFunc(v, saysPrivileged)
	case map[string]any:
		path, _ := v["path"].(string)
		if _, patch := v["op"].(string); patch && isPrivilege(path[strings.LastIndexByte(path, '/')+1:]) && v["value"] != false {
			return true
		}
		for name, value := range v {
			if isPrivilege(name) && value != nil && value != false || saysPrivileged(value) {
				return true
			}
		}
	}
	return false
}

func isPrivilege(name string) bool { return name == "privileged" || name == "hostProcess" }

// member follows names into a decoded object.
func member(v any, names ...string) any {
	for _, name := range names {
		object, _ := v.(map[string]any)
		v = object[name]
	}
	return v
}

// sorted returns the distinct texts in order.
func sorted(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}
