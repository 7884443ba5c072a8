# CloudPaxos in a Kubernetes cluster that exists: infra/k8s/overlays/production, and on top of it what
# this cluster is told apart by. kubectl does it, because a provider would have to reach the cluster while
# it plans, and to know every field of every manifest.

locals {
  namespace = "cloudpaxos"
  endpoint  = "cloudpaxos.${local.namespace}.svc.cluster.local:2379"
  manifests = abspath(coalesce(var.manifests, "${path.module}/../../../k8s"))
  labels    = { "app.kubernetes.io/part-of" = "cloudpaxos" }

  # Name, and tag or digest: the last colon is a port's if a slash follows it.
  digest = strcontains(var.image, "@")
  name   = local.digest ? split("@", var.image)[0] : regex("^(.*):[^:/]+$", var.image)[0]
  image = merge(
    # What the overlay has put in the place of `cloudpaxos`.
    { name = "registry.example.com/cloudpaxos", newName = local.name },
    local.digest ? { digest = split("@", var.image)[1] } : {},
    local.digest ? {} : { newTag = regex("[^:/]+$", var.image) },
  )

  storage_class = var.storage_class == null ? {} : {
    "storageclass.yaml" = yamlencode({
      apiVersion           = "storage.k8s.io/v1"
      kind                 = "StorageClass"
      metadata             = { name = "fast", labels = local.labels }
      provisioner          = var.storage_class.provisioner
      parameters           = var.storage_class.parameters
      reclaimPolicy        = var.reclaim_policy
      allowVolumeExpansion = true
      # The disk is made in its pod's zone.
      volumeBindingMode = "WaitForFirstConsumer"
    })
  }

  backup = var.backup == null ? {} : {
    "backup-serviceaccount.yaml" = yamlencode({
      apiVersion = "v1"
      kind       = "ServiceAccount"
      metadata = {
        name        = var.backup.service_account
        namespace   = local.namespace
        labels      = local.labels
        annotations = var.backup.service_account_annotations
      }
      automountServiceAccountToken = false
    })
    "backup-configmap.yaml" = yamlencode({
      apiVersion = "v1"
      kind       = "ConfigMap"
      metadata   = { name = "backup", namespace = local.namespace, labels = local.labels }
      data       = { url = var.backup.url }
    })
  }

  backup_job = var.backup == null || var.backup_schedule == null ? {} : {
    "backup-cronjob.yaml" = yamlencode({
      apiVersion = "batch/v1"
      kind       = "CronJob"
      metadata   = { name = "backup", namespace = local.namespace, labels = local.labels }
      spec = {
        schedule = var.backup_schedule
        timeZone = "Etc/UTC"
        # Two at once would only take each other's time.
        concurrencyPolicy = "Forbid"
        jobTemplate = {
          spec = {
            # What was cut short is listed as incomplete; the next try makes another backup.
            backoffLimit = 2
            template = {
              metadata = { labels = merge(local.labels, { "app.kubernetes.io/name" = "cloudpaxos-backup" }) }
              spec = {
                serviceAccountName           = var.backup.service_account
                automountServiceAccountToken = false
                enableServiceLinks           = false
                restartPolicy                = "Never"
                securityContext = {
                  runAsNonRoot   = true
                  runAsUser      = 65532
                  runAsGroup     = 65532
                  fsGroup        = 65532
                  seccompProfile = { type = "RuntimeDefault" }
                }
                containers = [{
                  name    = "backup"
                  image   = local.image.name
                  command = ["cloudpaxos"]
                  args    = ["backup", "create", "--to", var.backup.url]
                  env = [
                    { name = "CLOUDPAXOS_ENDPOINTS", value = local.endpoint },
                    { name = "CLOUDPAXOS_CACERT", value = "/etc/cloudpaxos/operator/ca.crt" },
                    { name = "CLOUDPAXOS_CERT", value = "/etc/cloudpaxos/operator/tls.crt" },
                    { name = "CLOUDPAXOS_KEY", value = "/etc/cloudpaxos/operator/tls.key" },
                  ]
                  resources = { requests = { cpu = "100m", memory = "256Mi" }, limits = { memory = "1Gi" } }
                  securityContext = {
                    allowPrivilegeEscalation = false
                    readOnlyRootFilesystem   = true
                    capabilities             = { drop = ["ALL"] }
                  }
                  volumeMounts = [{ name = "operator", mountPath = "/etc/cloudpaxos/operator", readOnly = true }]
                }]
                # 0440, which YAML 1.2 would not read as octal.
                volumes = [{ name = "operator", secret = { secretName = "cloudpaxos-operator", defaultMode = 288 } }]
              }
            }
          }
        }
      }
    })
    "backup-networkpolicy.yaml" = yamlencode({
      apiVersion = "networking.k8s.io/v1"
      kind       = "NetworkPolicy"
      metadata   = { name = "backup", namespace = local.namespace, labels = local.labels }
      spec = {
        podSelector = { matchLabels = { "app.kubernetes.io/name" = "cloudpaxos-backup" } }
        policyTypes = ["Egress"]
        egress = [
          {
            to    = [{ podSelector = { matchLabels = { "app.kubernetes.io/component" = "gateway" } } }]
            ports = [{ protocol = "TCP", port = "client" }]
          },
          # The bucket, and who gives out credentials for it.
          { ports = [{ protocol = "TCP", port = 443 }] },
        ]
      }
    })
  }

  resources = merge(local.storage_class, local.backup, local.backup_job)
  patches = concat(
    [
      for component, size in var.volume_sizes : {
        target = { kind = "StatefulSet", name = component }
        patch = yamlencode([{
          op    = "replace"
          path  = "/spec/volumeClaimTemplates/0/spec/resources/requests/storage"
          value = size
        }])
      }
    ],
    length(var.settings) == 0 ? [] : [
      {
        target = { kind = "ConfigMap", name = "cloudpaxos" }
        patch = yamlencode({
          apiVersion = "v1"
          kind       = "ConfigMap"
          metadata   = { name = "cloudpaxos", namespace = local.namespace }
          data       = var.settings
        })
      },
    ],
    # Backups to the bucket take the place of those to a volume.
    [
      for kind, name in { CronJob = "backup-to-volume", PersistentVolumeClaim = "backups" } : {
        target                    = { kind = kind, name = name }
        patch = yamlencode({
          apiVersion = kind == "CronJob" ? "batch/v1" : "v1"
          kind       = kind
          metadata   = { name = name, namespace = local.namespace }
          "$patch"   = "delete"
        })
      } if length(local.backup_job) > 0
    ],
    # Processes read settings when they start, so pods have to be replaced when settings change.
    [
      for kind, name in { StatefulSet = "shardmaster|shardkv", Deployment = "gateway" } : {
        target                        = { kind = kind, name = name }
        patch = yamlencode({
          apiVersion = "apps/v1"
          kind       = kind
          metadata   = { name = "any" }
          spec = {
            template = {
              metadata = { annotations = { "checksum/settings" = sha256(jsonencode(var.settings)) } }
            }
          }
        })
      }
    ],
  )

  files = merge(local.resources, {
    "kustomization.yaml" = yamlencode({
      apiVersion = "kustomize.config.k8s.io/v1beta1"
      kind       = "Kustomization"
      resources  = concat(["../overlays/production"], keys(local.resources))
      images     = [local.image]
      patches    = local.patches
    })
  })

  # Where kubectl goes.
  cluster = {
    WORKLOAD_CONTEXT    = var.context
    WORKLOAD_KUBECONFIG = var.kubeconfig == null ? "" : abspath(var.kubeconfig)
    WORKLOAD_NAMESPACE  = local.namespace
  }
}

# Stands for what is there, and outlives a failed apply: the destroy provisioner of a resource whose
# creation has failed does not run.
resource "terraform_data" "namespace" {
  input            = merge(local.cluster, { WORKLOAD_REMOVE_DATA = tostring(var.remove_data) })
  triggers_replace = [var.context, local.namespace]

  provisioner "local-exec" {
    when        = destroy
    command     = "'${path.module}/deploy' delete"
    environment = self.input
  }
}

resource "terraform_data" "workload" {
  triggers_replace = {
    namespace = terraform_data.namespace.id
    files     = local.files
    manifests = sha256(join("\n", [
      for file in sort(concat(
        tolist(fileset(local.manifests, "base/*.yaml")),
        tolist(fileset(local.manifests, "overlays/production/*.yaml")),
      )) : "${file} ${filesha256("${local.manifests}/${file}")}"
    ]))
  }

  lifecycle {
    precondition {
      condition     = fileexists("${local.manifests}/overlays/production/kustomization.yaml")
      error_message = "${local.manifests} does not hold the manifests of CloudPaxos."
    }
    precondition {
      condition     = var.backup_schedule == null || try(startswith(var.backup.url, "s3://"), false)
      error_message = "A backup_schedule needs a backup whose url begins with s3://."
    }
  }

  provisioner "local-exec" {
    command = "'${path.module}/deploy' apply"
    environment = merge(local.cluster, {
      WORKLOAD_MANIFESTS     = local.manifests
      WORKLOAD_FILES         = join(" ", [for name, text in local.files : "${name}:${base64encode(text)}"])
      WORKLOAD_READY_MINUTES = var.ready_minutes
    })
  }
}
