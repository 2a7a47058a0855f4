package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

// protobufType is how kubectl and controllers write the objects of Kubernetes'
// own API.
const protobufType = "application/vnd.kubernetes.protobuf"

// A protobufReader reads bodies in protobuf as the JSON that they stand for.
type protobufReader struct{ serializer *protobuf.Serializer }

var bodies = newProtobufReader()

func newProtobufReader() *protobufReader {
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{admissionv1.AddToScheme, appsv1.AddToScheme, authenticationv1.AddToScheme,
		authorizationv1.AddToScheme, autoscalingv1.AddToScheme, autoscalingv2.AddToScheme, batchv1.AddToScheme, certificatesv1.AddToScheme,
		coordinationv1.AddToScheme, corev1.AddToScheme, eventsv1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
		rbacv1.AddToScheme, schedulingv1.AddToScheme, storagev1.AddToScheme} {
		if err := add(types); err != nil { // two types of one name in Kubernetes' own API
			panic("kube: " + err.Error())
		}
	}
	metav1.AddToGroupVersion(types, schema.GroupVersion{Version: "v1"})
	return &protobufReader{protobuf.NewSerializer(types, types)}
}

// json returns the JSON that body stands for. What does not come out the same
// when it is written again holds something that these types do not have, and is
// an error.
func (r *protobufReader) json(body []byte) (text []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	object, _, err := r.serializer.Decode(body, nil, nil)
	if err != nil {
		return nil, err
	}
	var again bytes.Buffer
	if err := r.serializer.Encode(object, &again); err != nil {
		return nil, err
	}
	if !bytes.Equal(again.Bytes(), body) {
		return nil, errors.New("it holds what this version does not know")
	}
	return json.Marshal(object)
}
