package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/client-go/util/retry"
)

// How long a worker pauses after a failure.
const failurePause = 200 * time.Millisecond

// One of those who write in a namespace.
type worker struct {
	client    *rest.RESTClient
	limiter   flowcontrol.RateLimiter
	report    *reporter
	namespace string
	name      string
	instance  int
	made      []string
	gone      int
}

func runWriter(ctx context.Context, config *rest.Config, options options, report *reporter) error {
	client, err := newClient(config)
	if err != nil {
		return err
	}
	limiter := flowcontrol.NewTokenBucketRateLimiter(float32(options.rate), 1)
	var running sync.WaitGroup
	for i, namespace := range options.namespaces {
		for j := range options.workers {
			running.Go(func() {
				worker := &worker{
					client: client, limiter: limiter, report: report, namespace: namespace,
					name: fmt.Sprintf("w%d", j), instance: i*options.workers + j,
				}
				for round := 0; ctx.Err() == nil; round++ {
					// The end comes between rounds: what was begun is finished, so that every outcome is known.
					if err := worker.round(context.WithoutCancel(ctx), round); err != nil {
						report.say(line{Kind: "failed", Instance: worker.instance, Namespace: namespace, Message: err.Error()})
						time.Sleep(failurePause)
					}
				}
			})
		}
	}
	report.say(line{Kind: "synced"})
	running.Wait()
	return nil
}

// One Application, from its creation to a change or the end.
func (w *worker) round(ctx context.Context, round int) error {
	name := fmt.Sprintf("%s-%05d", w.name, round)
	app := &Application{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec:       ApplicationSpec{Image: "registry.example.com/web:1", Port: 8080, Replicas: 1, Tier: "standard", Owner: w.namespace},
	}
	if err := w.write(ctx, "ADDED", name, w.client.Post().Resource(resource.Resource).Body(app)); err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	// As every controller updates: again from what is there now if others were faster.
	update := func() error {
		var current Application
		if err := w.wait(ctx, w.of(w.client.Get(), name)).Into(&current); err != nil {
			return err
		}
		current.Spec.Replicas++
		return w.write(ctx, "MODIFIED", name, w.of(w.client.Put(), name).Body(&current))
	}
	if err := retry.RetryOnConflict(retry.DefaultBackoff, update); err != nil {
		return fmt.Errorf("update %s: %w", name, err)
	}
	patch := []byte(fmt.Sprintf(`{"metadata":{"labels":{"round":"%d"}}}`, round))
	if err := w.write(ctx, "MODIFIED", name, w.of(w.client.Patch(types.MergePatchType), name).Body(patch)); err != nil {
		return fmt.Errorf("patch %s: %w", name, err)
	}
	// An object lives for two rounds more; every fourth stays.
	w.made = append(w.made, name)
	if len(w.made) <= 2 {
		return nil
	}
	old := w.made[0]
	w.made = w.made[1:]
	w.gone++
	if w.gone%4 == 0 {
		return nil
	}
	if err := w.write(ctx, "DELETED", old, w.of(w.client.Delete(), old)); err != nil {
		return fmt.Errorf("delete %s: %w", old, err)
	}
	return nil
}

func (w *worker) of(request *rest.Request, name string) *rest.Request {
	return request.Resource(resource.Resource).Name(name)
}

func (w *worker) wait(ctx context.Context, request *rest.Request) rest.Result {
	w.limiter.Accept()
	return request.Namespace(w.namespace).Do(ctx)
}

// A write, and what was acknowledged. With finalizers on the object, DELETED is a change as others are.
func (w *worker) write(ctx context.Context, change, name string, request *rest.Request) error {
	body, err := w.wait(ctx, request).Raw()
	if err != nil {
		return err
	}
	// A deletion is answered by a Status if the object is gone: its metadata have the version of the deletion.
	var answer metav1.PartialObjectMetadata
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	answer.Namespace, answer.Name = w.namespace, name
	w.report.object("wrote", change, w.instance, &answer)
	return nil
}
