package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

func runInformer(ctx context.Context, config *rest.Config, options options, report *reporter) error {
	client, err := newClient(config)
	if err != nil {
		return err
	}
	return runInformers(ctx, options, report, func() cache.SharedIndexInformer {
		listWatch := cache.NewListWatchFromClient(client, resource.Resource, options.namespace(), fields.Everything())
		lw := cache.ToListWatcherWithWatchListSemantics(listWatch, client)
		return cache.NewSharedIndexInformer(lw, &Application{}, 0, cache.Indexers{})
	})
}

func runDynamicInformer(ctx context.Context, config *rest.Config, options options, report *reporter) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	return runInformers(ctx, options, report, func() cache.SharedIndexInformer {
		factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(client, 0, options.namespace(), nil)
		return factory.ForResource(resource).Informer()
	})
}

func runMetadataInformer(ctx context.Context, config *rest.Config, options options, report *reporter) error {
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return err
	}
	return runInformers(ctx, options, report, func() cache.SharedIndexInformer {
		factory := metadatainformer.NewFilteredSharedInformerFactory(client, 0, options.namespace(), nil)
		return factory.ForResource(resource).Informer()
	})
}

// The one namespace to look at, or all.
func (o options) namespace() string {
	if len(o.namespaces) == 1 {
		return o.namespaces[0]
	}
	return v1.NamespaceAll
}

func runInformers(ctx context.Context, options options, report *reporter, create func() cache.SharedIndexInformer) error {
	informers := make([]cache.SharedIndexInformer, options.count)
	for i := range informers {
		informer := create()
		informers[i] = informer
		onError := func(_ context.Context, _ *cache.Reflector, err error) {
			// The regular end of a watch.
			if !errors.Is(err, io.EOF) {
				report.error("reflector", i, err)
			}
		}
		if err := informer.SetWatchErrorHandlerWithContext(onError); err != nil {
			return err
		}
		registration, err := informer.AddEventHandler(handler(report, i))
		if err != nil {
			return err
		}
		go informer.RunWithContext(ctx)
		go func() {
			if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced, registration.HasSynced) {
				report.say(line{Kind: "synced", Instance: i, ResourceVersion: informer.LastSyncResourceVersion()})
			}
		}()
	}
	<-ctx.Done()
	for i, informer := range informers {
		for _, item := range informer.GetStore().List() {
			object, err := meta.Accessor(item)
			if err != nil {
				return err
			}
			report.object("cached", "", i, object)
		}
	}
	return nil
}

func handler(report *reporter, instance int) cache.ResourceEventHandler {
	say := func(change string, item any) {
		if unknown, is := item.(cache.DeletedFinalStateUnknown); is {
			change, item = "UNKNOWN", unknown.Obj
		}
		object, err := meta.Accessor(item)
		if err != nil {
			report.error("handler", instance, fmt.Errorf("%s of %T: %w", change, item, err))
			return
		}
		report.object("event", change, instance, object)
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(item any) { say("ADDED", item) },
		UpdateFunc: func(_, item any) { say("MODIFIED", item) },
		DeleteFunc: func(item any) { say("DELETED", item) },
	}
}
