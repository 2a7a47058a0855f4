package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"
)

// FuzzRead: a pod that the API server would make privileged is never known to be
// none, whatever its text.
func FuzzRead(f *testing.F) {
	for _, body := range []string{
		`{"spec":{"containers":[{"name":"a","image":"b","securityContext":{"privileged":true}}]}}`,
		`{"spec":{"containers":[{"securityContext":{"privileged":true,"privileged":null}}]}}`,
		`{"SPEC":{"containers":[]},"spec":{"initContainers":[{"securityContext":{"Privileged":true}}]}}`,
		`{"spec":{"hostPID":true,"hostpid":false}}`, `{"spec":null}`, `[]`, `{"apiVersion":"v1","kind":"Pod"}`,
	} {
		f.Add("/api/v1/namespaces/shop/pods", body)
	}
	f.Add("/api/v1/namespaces/shop/pods/x/ephemeralcontainers", `{"spec":{"ephemeralContainers":[{"securityContext":{"privileged":true}}]}}`)
	f.Fuzz(func(t *testing.T, path, body string) {
		k, err := Read(post(path, body))
		if err != nil || k.Resource != "pods" || k.Group != "" || !k.Object.Knows("privileged") || k.Object.Privileged || IsStream(k) {
			return
		}
		var pod corev1.Pod
		if kjson.UnmarshalCaseSensitivePreserveInts([]byte(body), &pod) != nil {
			return // the API server refuses it
		}
		containers := append(pod.Spec.Containers, pod.Spec.InitContainers...)
		for _, c := range pod.Spec.EphemeralContainers {
			containers = append(containers, corev1.Container(c.EphemeralContainerCommon))
		}
		for _, c := range containers {
			if c.SecurityContext != nil && isTrue(c.SecurityContext.Privileged) {
				t.Fatalf("%s %q is privileged, and judged as %+v", path, body, k.Object)
			}
		}
	})
}
