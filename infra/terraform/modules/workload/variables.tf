variable "image" {
  description = "The image of CloudPaxos, with tag or digest: registry.example.com/cloudpaxos:0.1.0."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9._:/-]*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[0-9a-f]{64})$", var.image))
    error_message = "The image needs a tag or a digest: registry.example.com/cloudpaxos:0.1.0."
  }
}

variable "manifests" {
  description = "The folder with the manifests; null for infra/k8s of this repository."
  type        = string
  default     = null
}

variable "kubeconfig" {
  description = "The file by which kubectl reaches the cluster; null for kubectl's own choice."
  type        = string
  default     = null
}

variable "context" {
  description = "The context in that file. Named, so that no other cluster is changed because it happens to be the current one."
  type        = string
}

variable "storage_class" {
  description = "What the storage class of the volumes is made of: output storage_class of modules/aws or modules/gcp. Null where a class `fast` exists."
  type = object({
    provisioner = string
    parameters  = map(string)
  })
  default = null
}

variable "reclaim_policy" {
  description = "What becomes of a disk whose volume claim is deleted: Retain or Delete. A replica that lost its disk cannot come back, so disks are kept."
  type        = string
  default     = "Retain"

  validation {
    condition     = contains(["Retain", "Delete"], var.reclaim_policy)
    error_message = "The policy is Retain or Delete."
  }
}

variable "volume_sizes" {
  description = "Sizes of the volumes of a new cluster. Later Kubernetes takes no other ones here: enlarge the volume claims."
  type = object({
    shardmaster = optional(string, "20Gi")
    shardkv     = optional(string, "200Gi")
  })
  default = {}

  validation {
    condition     = alltrue([for size in values(var.volume_sizes) : can(regex("^[1-9][0-9]*(Mi|Gi|Ti)$", size))])
    error_message = "A size is a whole number with Mi, Gi or Ti."
  }
}

variable "settings" {
  description = "Settings of all processes, by their variables, such as { CLOUDPAXOS_LOG_LEVEL = \"debug\" }. A change replaces the pods one by one."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.settings) : can(regex("^CLOUDPAXOS_[A-Z_]+$", name))])
    error_message = "Names of settings begin with CLOUDPAXOS_."
  }
}

variable "backup" {
  description = "Where backups go and as whom: output backup of modules/aws or modules/gcp. Null for none."
  type = object({
    url                         = string
    service_account             = string
    service_account_annotations = map(string)
  })
  default = null
}

variable "backup_schedule" {
  description = "When backups are made, as a cron expression of UTC; null for never. Needs a `backup` whose url begins with s3://."
  type        = string
  default     = null

  validation {
    condition     = var.backup_schedule == null || can(regex("^[-0-9*/,]+( [-0-9*/,A-Za-z]+){4}$", var.backup_schedule))
    error_message = "A cron expression has five fields."
  }
}

variable "ready_minutes" {
  description = "How long to wait for all pods to be ready before giving up."
  type        = number
  default     = 15

  validation {
    condition     = var.ready_minutes == floor(var.ready_minutes) && var.ready_minutes >= 1
    error_message = "The time is a whole number of minutes, at least 1."
  }
}

variable "remove_data" {
  description = "Whether destroying removes the namespace with all volume claims and certificates. If not, the next apply goes on where the cluster has stopped."
  type        = bool
  default     = false
}
