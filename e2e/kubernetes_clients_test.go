package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/pager"

	"chaperone.dev/chaperone/internal/localserver"
)

// manySecrets is how many there are in the namespace many. (A list of 50 MB is
// for the benchmark.)
const manySecrets = 10_000

// manyValue is the value of each of them, in base64.
var manyValue = base64.StdEncoding.EncodeToString([]byte("hunter2 " + strings.Repeat("and more of it ", 20)))

var many struct {
	once sync.Once
	err  error
}

// seeded fills the namespace many.
func seeded(t *testing.T, direct kubectl) {
	t.Helper()
	many.once.Do(func() {
		seeds := make([]localserver.Seed, manySecrets)
		for i := range seeds {
			name := fmt.Sprintf("s-%05d", i)
			seeds[i] = localserver.Seed{Key: "secrets/many/" + name, Object: fmt.Sprintf(`{"kind":"Secret","apiVersion":"v1","metadata":{"name":%q,"namespace":"many",`+
				`"uid":"00000000-0000-4000-8000-0000000%05d","creationTimestamp":"2026-01-02T03:04:05Z","labels":{"tenth":"%d"}},"data":{"p":%q},"type":"Opaque"}`, name, i, i%10, manyValue)}
		}
		if _, many.err = direct.run(context.Background(), "", "create", "namespace", "many"); many.err == nil {
			many.err = prepared.cluster.Seed(context.Background(), seeds)
		}
	})
	if many.err != nil {
		t.Fatal(many.err)
	}
}

// restConfig is for client-go what kubectl has.
func restConfig(t *testing.T, k kubectl) *rest.Config {
	t.Helper()
	c, err := clientcmd.BuildConfigFromFlags("", k.config)
	if err != nil {
		t.Fatal(err)
	}
	if c.ExecProvider != nil { // it inherits our environment, which is everybody's
		c.ExecProvider, c.BearerToken = nil, strings.TrimPrefix(k.env[0], "CHAPERONE_TOKEN=")
	}
	c.QPS, c.Burst, c.Timeout = 1000, 1000, time.Minute
	return c
}

// hidden is the Secret as the gateway shows it.
func hidden(s corev1.Secret) corev1.Secret {
	s.Data = map[string][]byte{"p": []byte("***")}
	return s
}

// TestClientGoInformer: a shared informer through the gateway has the same
// 10,000 Secrets as straight at the cluster, but for their values, follows what
// changes, and resyncs; a list in pages has them, too.
func TestClientGoInformer(t *testing.T) {
	t.Parallel()
	_, direct, through := kubernetes(t)
	seeded(t, direct)
	straight, err := coreclient.NewForConfig(restConfig(t, direct))
	if err != nil {
		t.Fatal(err)
	}
	masked, err := coreclient.NewForConfig(restConfig(t, through))
	if err != nil {
		t.Fatal(err)
	}
	list, err := straight.Secrets("many").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != manySecrets || string(list.Items[0].Data["p"][:7]) != "hunter2" {
		t.Fatalf("the cluster has %d Secrets: %v", len(list.Items), err)
	}
	want := make(map[string]corev1.Secret, manySecrets)
	for _, s := range list.Items {
		want[s.Name] = hidden(s)
	}
	informer := cache.NewSharedInformer(cache.NewListWatchFromClient(masked.RESTClient(), "secrets", "many", fields.Everything()), &corev1.Secret{}, 2*time.Second)
	resynced, changed := make(chan struct{}), make(chan *corev1.Secret, 16)
	var once sync.Once
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(before, after any) {
			old, now := before.(*corev1.Secret), after.(*corev1.Secret)
			if old.ResourceVersion == now.ResourceVersion {
				once.Do(func() { close(resynced) })
			} else {
				changed <- now
			}
		},
		DeleteFunc: func(o any) { changed <- o.(*corev1.Secret) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { informer.Run(ctx.Done()) })
	defer running.Wait()
	defer stop()
	if !cache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
		t.Fatal("the informer does not sync")
	}
	same := 0
	for _, o := range informer.GetStore().List() {
		s := *o.(*corev1.Secret)
		if reflect.DeepEqual(s, want[s.Name]) {
			same++
		} else if same < 3 {
			t.Errorf("%s is %.300v", s.Name, s)
		}
	}
	if same != manySecrets {
		t.Errorf("%d of %d Secrets are the same but for their values", same, manySecrets)
	}
	<-resynced
	for _, do := range []func() error{
		func() error {
			_, err := straight.Secrets("many").Patch(t.Context(), "s-00007", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"changed":"yes"}}}`), metav1.PatchOptions{})
			return err
		},
		func() error { return straight.Secrets("many").Delete(t.Context(), "s-00007", metav1.DeleteOptions{}) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if s := <-changed; s.Name != "s-00007" || s.Labels["changed"] != "yes" || string(s.Data["p"]) != "***" {
			t.Errorf("the informer hears of %v", s)
		}
	}
	pages := 0
	all := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		pages++
		return masked.Secrets("many").List(ctx, o)
	})
	all.PageSize = 1000
	count := 0
	err = all.EachListItem(t.Context(), metav1.ListOptions{LabelSelector: "tenth=3"}, func(o runtime.Object) error {
		if s := o.(*corev1.Secret); reflect.DeepEqual(*s, want[s.Name]) {
			count++
		}
		return nil
	})
	if err != nil || count != manySecrets/10 || pages < 1 {
		t.Errorf("%d Secrets in %d pages: %v", count, pages, err)
	}
}

// TestClientGoWatch: what a watch says beside objects comes through as it is:
// the bookmark behind the first objects, and that a version is gone, which a
// server of ours says at once.
func TestClientGoWatch(t *testing.T) {
	t.Parallel()
	_, direct, through := kubernetes(t)
	send, timeout := true, int64(20)
	for name, k := range map[string]kubectl{"direct": direct, "through": through} {
		config := restConfig(t, k)
		client, err := coreclient.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		w, err := client.ConfigMaps("kube-system").Watch(t.Context(), metav1.ListOptions{SendInitialEvents: &send, AllowWatchBookmarks: true,
			ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, TimeoutSeconds: &timeout})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		added := 0
		for event := range w.ResultChan() {
			if event.Type == watch.Added {
				added++
				continue
			}
			if event.Type != watch.Bookmark || event.Object.(*corev1.ConfigMap).Annotations[metav1.InitialEventsAnnotationKey] != "true" || added == 0 {
				t.Errorf("%s: after %d objects comes %+v", name, added, event)
			}
			break
		}
		w.Stop()
		if config.Host = strings.TrimSuffix(config.Host, "cluster") + "liar"; k.config == direct.config {
			config = &rest.Config{Host: prepared.liar.server.URL, TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(prepared.dir, "liar.crt")}}
		}
		if client, err = coreclient.NewForConfig(config); err != nil {
			t.Fatal(err)
		}
		if w, err = client.Secrets("x-expired").Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1"}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if event := <-w.ResultChan(); event.Type != watch.Error || !apierrors.IsResourceExpired(apierrors.FromObject(event.Object)) {
			t.Errorf("%s: a watch of a version that is gone: %+v", name, event)
		}
		w.Stop()
		if _, err := client.Secrets("x-expired").List(t.Context(), metav1.ListOptions{Limit: 1, Continue: "x"}); !apierrors.IsResourceExpired(err) || !strings.Contains(err.Error(), "too old") {
			t.Errorf("%s: a page of a list that is gone: %v", name, err)
		}
	}
}

// TestClientGoLeaderElection: of two that want a Lease one leads, and when it
// stops, the other.
func TestClientGoLeaderElection(t *testing.T) {
	t.Parallel()
	_, _, through := kubernetes(t)
	config := restConfig(t, through)
	core, coreErr := coreclient.NewForConfig(config)
	leases, leasesErr := coordinationclient.NewForConfig(config)
	if err := errors.Join(coreErr, leasesErr); err != nil {
		t.Fatal(err)
	}
	leads := make(chan string, 2)
	var running sync.WaitGroup
	defer running.Wait()
	run := func(name string) (stop context.CancelFunc) {
		lock, err := resourcelock.New(resourcelock.LeasesResourceLock, "compat", "elected", core, leases, resourcelock.ResourceLockConfig{Identity: name})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		running.Go(func() {
			leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{Lock: lock, LeaseDuration: 60 * time.Second, RenewDeadline: 40 * time.Second,
				RetryPeriod: 200 * time.Millisecond, ReleaseOnCancel: true, Callbacks: leaderelection.LeaderCallbacks{
					OnStartedLeading: func(context.Context) { leads <- name }, OnStoppedLeading: func() {}}})
		})
		return stop
	}
	stopFirst := run("first")
	if got := <-leads; got != "first" {
		t.Fatalf("%s leads", got)
	}
	stopSecond := run("second")
	defer stopSecond()
	lease, err := leases.Leases("compat").Get(t.Context(), "elected", metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != "first" {
		t.Errorf("the Lease is %v: %v", lease, err)
	}
	stopFirst()
	if got := <-leads; got != "second" {
		t.Errorf("%s leads after the first", got)
	}
}

// TestClientGoDynamic: the dynamic client writes and reads through the gateway
// what it does straight at the cluster.
func TestClientGoDynamic(t *testing.T) {
	t.Parallel()
	_, direct, through := kubernetes(t)
	straight, straightErr := dynamic.NewForConfig(restConfig(t, direct))
	dyn, err := dynamic.NewForConfig(restConfig(t, through))
	if err = errors.Join(err, straightErr); err != nil {
		t.Fatal(err)
	}
	maps := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "dynamic"}, "data": map[string]any{"a": "1"}}}
	if _, err := dyn.Resource(maps).Namespace("compat").Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	object.Object["data"] = map[string]any{"a": "2"}
	if _, err := dyn.Resource(maps).Namespace("compat").Apply(t.Context(), "dynamic", object, metav1.ApplyOptions{FieldManager: "test", Force: true}); err != nil {
		t.Fatal(err)
	}
	got, err := dyn.Resource(maps).Namespace("compat").Get(t.Context(), "dynamic", metav1.GetOptions{})
	want, wantErr := straight.Resource(maps).Namespace("compat").Get(t.Context(), "dynamic", metav1.GetOptions{})
	if err != nil || wantErr != nil || !reflect.DeepEqual(got, want) || got.Object["data"].(map[string]any)["a"] != "2" {
		t.Errorf("got  %v %v\nwant %v %v", got, err, want, wantErr)
	}
	if err := dyn.Resource(maps).Namespace("compat").Delete(t.Context(), "dynamic", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := straight.Resource(maps).Namespace("compat").Get(t.Context(), "dynamic", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after its deletion: %v", err)
	}
}
