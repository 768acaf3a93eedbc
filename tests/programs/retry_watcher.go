package main

import (
	"context"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

func runRetryWatcher(ctx context.Context, config *rest.Config, options options, report *reporter) error {
	var running sync.WaitGroup
	for i := range options.count {
		client, err := dynamic.NewForConfig(config)
		if err != nil {
			return err
		}
		objects := client.Resource(resource).Namespace(options.namespace())
		list, err := objects.List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for j := range list.Items {
			report.object("listed", "", i, &list.Items[j])
		}
		source := &cache.ListWatch{
			WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
				return objects.Watch(ctx, options)
			},
		}
		watcher, err := watchtools.NewRetryWatcherWithContext(ctx, list.GetResourceVersion(), source)
		if err != nil {
			return err
		}
		report.say(line{Kind: "synced", Instance: i, ResourceVersion: list.GetResourceVersion()})
		running.Go(func() {
			for event := range watcher.ResultChan() {
				object, err := meta.Accessor(event.Object)
				switch {
				case event.Type == watch.Error || err != nil:
					report.error("watcher", i, fmt.Errorf("%s %v", event.Type, event.Object))
				case event.Type == watch.Bookmark:
					report.object("bookmark", "", i, object)
				default:
					report.object("event", string(event.Type), i, object)
				}
			}
			if ctx.Err() == nil {
				report.error("watcher", i, fmt.Errorf("it has ended"))
			}
		})
	}
	<-ctx.Done()
	running.Wait()
	return nil
}
