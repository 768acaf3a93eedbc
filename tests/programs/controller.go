package main

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

// What a controller does to each Application: its finalizer first, then the status; on deletion the finalizer goes.
type reconciler struct {
	client.Client
	finalizer string
	report    *reporter
}

func runController(ctx context.Context, config *rest.Config, options options, report *reporter) error {
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:  newScheme(),
		Metrics: server.Options{BindAddress: "0"},
	})
	if err != nil {
		return err
	}
	reconciler := &reconciler{manager.GetClient(), options.finalizer, report}
	if err := ctrl.NewControllerManagedBy(manager).For(&Application{}).Complete(reconciler); err != nil {
		return err
	}
	// What its cache hears, as informers do.
	informer, err := manager.GetCache().GetInformer(ctx, &Application{})
	if err != nil {
		return err
	}
	if _, err := informer.AddEventHandler(handler(report, 0)); err != nil {
		return err
	}
	go func() {
		if manager.GetCache().WaitForCacheSync(ctx) {
			report.say(line{Kind: "synced"})
		}
	}()
	if err := manager.Start(ctx); err != nil {
		return err
	}
	// The cache has stopped, and answers still.
	var list ApplicationList
	if err := manager.GetClient().List(context.WithoutCancel(ctx), &list); err != nil {
		return err
	}
	for i := range list.Items {
		report.object("cached", "", 0, &list.Items[i])
	}
	return nil
}

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var app Application
	if err := r.Get(ctx, request.NamespacedName, &app); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if app.DeletionTimestamp != nil {
		if controllerutil.RemoveFinalizer(&app, r.finalizer) {
			if err := r.Update(ctx, &app); err != nil {
				return ctrl.Result{}, client.IgnoreNotFound(err)
			}
			r.report.object("reconciled", "FINALIZED", 0, &app)
		}
		return ctrl.Result{}, nil
	}
	if controllerutil.AddFinalizer(&app, r.finalizer) {
		if err := r.Update(ctx, &app); err != nil {
			return ctrl.Result{}, client.IgnoreNotFound(err)
		}
	}
	if app.Status.ObservedGeneration == app.Generation {
		return ctrl.Result{}, nil
	}
	app.Status.ObservedGeneration = app.Generation
	app.Status.Replicas = app.Spec.Replicas
	app.Status.Endpoint = fmt.Sprintf("https://%s.%s.example.com", app.Name, app.Namespace)
	meta.SetStatusCondition(&app.Status.Conditions, metav1.Condition{
		Type: "Ready", Status: metav1.ConditionTrue, Reason: "Reconciled", Message: "It runs", ObservedGeneration: app.Generation,
	})
	if err := r.Status().Update(ctx, &app); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	r.report.object("reconciled", "STATUS", 0, &app)
	return ctrl.Result{}, nil
}
