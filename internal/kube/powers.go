package kube

import (
	"slices"
	"strings"

	"chaperone.dev/chaperone/internal/access"
)

// connects are the subresources of the core API that lead into or through what
// they belong to, whatever the method.
var connects = map[string]string{
	"pods/exec": access.PowerExec, "pods/attach": access.PowerAttach, "pods/portforward": access.PowerPortForward,
	"pods/proxy": access.PowerProxy, "services/proxy": access.PowerProxy, "nodes/proxy": access.PowerProxy,
}

// writes are the powers of a write to a resource, by group and path.
var writes = map[string]string{
	"/pods/ephemeralcontainers": access.PowerEphemeral, "/pods/binding": access.PowerBindPod, "/bindings": access.PowerBindPod,
	"/pods/eviction": access.PowerEvict, "/serviceaccounts/token": access.PowerToken,
	"certificates.k8s.io/certificatesigningrequests/approval": access.PowerApprove,
	"certificates.k8s.io/certificatesigningrequests/status":   access.PowerSign,
	"apiregistration.k8s.io/apiservices":                      access.PowerAggregation,
	"apiregistration.k8s.io/apiservices/status":               access.PowerAggregation,
	rbac + "/roles":               access.PowerEscalate,
	rbac + "/clusterroles":        access.PowerEscalate,
	rbac + "/rolebindings":        access.PowerBind,
	rbac + "/clusterrolebindings": access.PowerBind,
}

const rbac = "rbac.authorization.k8s.io"

// powersOf names what the request can do beyond changing its object.
func powersOf(k *access.K8s) (powers []string) {
	path := k.Resource
	if k.Subresource != "" {
		path += "/" + k.Subresource
	}
	if power := connects[path]; power != "" && k.Group == "" {
		return []string{power}
	}
	if k.Verb == "get" || k.Verb == "list" || k.Verb == "watch" {
		return nil
	}
	if power := writes[k.Group+"/"+path]; power != "" {
		powers = append(powers, power)
	}
	if placesPod(k) {
		powers = append(powers, access.PowerBindPod)
	}
	o := k.Object
	switch {
	case k.Group == "admissionregistration.k8s.io":
		powers = append(powers, access.PowerAdmission)
	case k.Group == "" && path == "secrets" && k.Verb != "delete" && k.Verb != "deletecollection" &&
		(o.Type == "kubernetes.io/service-account-token" || !o.Knows("type") && k.Verb != "patch"): // no patch changes a type
		powers = append(powers, access.PowerToken)
	}
	if slices.Contains(powers, access.PowerEscalate) && (!o.Knows("verbs") || slices.Contains(o.Verbs, "impersonate") || slices.Contains(o.Verbs, "*")) {
		powers = append(powers, access.PowerImpersonate)
	}
	slices.Sort(powers)
	return powers
}

// placesPod reports whether the body says on which node a pod is to run. An
// update of a pod cannot: what it says was so before.
func placesPod(k *access.K8s) bool {
	w, ok := workloads[k.Group+"/"+k.Resource]
	creates := k.Verb == "create" || k.ContentType == applyPatchType
	if !ok || k.Subresource != "" || k.Resource == "pods" && !creates {
		return false
	}
	if operations, ok := k.Body.([]any); ok {
		return namesNode(operations)
	}
	node := member(member(k.Body, w.spec...), "nodeName")
	return node != nil && node != ""
}

// namesNode reports whether a JSON patch sets nodeName, by its path or within a
// value.
func namesNode(v any) bool {
	switch v := v.(type) {
	case []any:
		return slices.ContainsFunc(v, namesNode)
	case map[string]any:
		if path, _ := v["path"].(string); strings.HasSuffix(path, "/nodeName") && v["op"] != "remove" {
			return true
		}
		for name, value := range v {
			if name == "nodeName" && value != nil && value != "" || namesNode(value) {
				return true
			}
		}
	}
	return false
}
