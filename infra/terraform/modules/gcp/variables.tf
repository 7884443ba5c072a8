variable "project" {
  description = "The id of the project that everything is made in."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "This is no project id."
  }
}

variable "region" {
  description = "The region, which has at least three zones."
  type        = string
  default     = "europe-west1"
}

variable "zones" {
  description = "Three zones of the region; empty for the first three there are."
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.zones) == 0 || length(distinct(var.zones)) == 3
    error_message = "Name three different zones, or none."
  }
}

variable "name" {
  description = "The name of the cluster, and the beginning of the names of all that belongs to it."
  type        = string
  default     = "cloudpaxos"

  validation {
    # Ids of service accounts have 30 characters at most, and ours end with `-backup`.
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}[a-z0-9]$", var.name))
    error_message = "The name is 3 to 22 lower-case letters, digits and '-', begins with a letter and does not end with '-'."
  }
}

variable "network_cidrs" {
  description = "The addresses of nodes, of pods, and of services."
  type = object({
    nodes    = optional(string, "10.40.0.0/20")
    pods     = optional(string, "10.44.0.0/14")
    services = optional(string, "10.48.0.0/20")
  })
  default = {}

  validation {
    condition     = alltrue([for cidr in values(var.network_cidrs) : can(cidrnetmask(cidr))])
    error_message = "Each is an IPv4 network in CIDR notation."
  }
}

variable "control_plane_cidr" {
  description = "A network of /28 for the Kubernetes API inside the VPC."
  type        = string
  default     = "172.16.0.0/28"

  validation {
    condition     = can(cidrnetmask(var.control_plane_cidr)) && endswith(var.control_plane_cidr, "/28")
    error_message = "The network is an IPv4 network of /28."
  }
}

variable "api_cidrs" {
  description = "From which addresses the Kubernetes API may be reached over the internet; empty for not at all."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.api_cidrs : can(cidrhost(cidr, 0)) && cidr != "0.0.0.0/0"])
    error_message = "Every entry is a network in CIDR notation, and none is the whole internet."
  }
}

variable "release_channel" {
  description = "How soon new versions of Kubernetes come: RAPID, REGULAR or STABLE."
  type        = string
  default     = "REGULAR"

  validation {
    condition     = contains(["RAPID", "REGULAR", "STABLE"], var.release_channel)
    error_message = "The channel is RAPID, REGULAR or STABLE."
  }
}

variable "machine_type" {
  description = "Machine type of the nodes. A shardkv pod asks for 4 CPUs and 8 GiB."
  type        = string
  default     = "n2-standard-8"
}

variable "nodes_per_zone" {
  description = "How many nodes each zone has: at least, and at most."
  type = object({
    min = optional(number, 1)
    max = optional(number, 3)
  })
  default = {}

  validation {
    condition     = var.nodes_per_zone.min >= 1 && var.nodes_per_zone.max >= var.nodes_per_zone.min
    error_message = "Every zone has at least one node, and the maximum is not below the minimum."
  }
}

variable "backup_service_account" {
  description = "The service account of Kubernetes, in the namespace `cloudpaxos`, that may write and read backups."
  type        = string
  default     = "backup"
}

variable "backup_days" {
  description = "After how many days a backup that was replaced or deleted is gone for good."
  type        = number
  default     = 30

  validation {
    condition     = var.backup_days >= 1 && var.backup_days == floor(var.backup_days)
    error_message = "The time is a whole number of days, at least 1."
  }
}

variable "backup_remove" {
  description = "Whether destroying removes the bucket though it holds backups."
  type        = bool
  default     = false
}

variable "deletion_protection" {
  description = "Whether the cluster refuses to be destroyed until this is false."
  type        = bool
  default     = true
}

variable "labels" {
  description = "Labels of everything that can have some."
  type        = map(string)
  default     = {}
}
