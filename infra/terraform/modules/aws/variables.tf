variable "name" {
  description = "The name of the cluster, and the beginning of the names of all that belongs to it."
  type        = string
  default     = "cloudpaxos"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}[a-z0-9]$", var.name))
    error_message = "The name is 3 to 32 lower-case letters, digits and '-', begins with a letter and does not end with '-'."
  }
}

variable "zones" {
  description = "The three availability zones, of the provider's region; empty for the first three there are."
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.zones) == 0 || length(distinct(var.zones)) == 3
    error_message = "Name three different zones, or none."
  }
}

variable "network_cidr" {
  description = "The addresses of the VPC. Each zone gets a sixteenth of it for nodes and pods, and a 256th for its NAT gateway."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.network_cidr)) && try(tonumber(split("/", var.network_cidr)[1]), 0) >= 16 && try(tonumber(split("/", var.network_cidr)[1]), 99) <= 18
    error_message = "The addresses are an IPv4 network of /16 to /18."
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

variable "kubernetes_version" {
  description = "The version of Kubernetes, at least 1.30."
  type        = string
  default     = "1.34"

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version)) && try(tonumber(split(".", var.kubernetes_version)[1]), 0) >= 30
    error_message = "CloudPaxos' manifests need Kubernetes 1.30 or later."
  }
}

variable "instance_types" {
  description = "Instance types of the nodes, the first that can be had. A shardkv pod asks for 4 CPUs and 8 GiB."
  type        = list(string)
  default     = ["m7i.2xlarge", "m6i.2xlarge"]

  validation {
    condition     = length(var.instance_types) > 0
    error_message = "At least one instance type is needed."
  }
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

variable "volume_iops" {
  description = "Operations per second of a volume, from 3000 (no extra cost) to 16000. Every write waits for syncs of two volumes."
  type        = number
  default     = 3000

  validation {
    condition     = var.volume_iops >= 3000 && var.volume_iops <= 16000
    error_message = "A gp3 volume has 3000 to 16000 operations per second."
  }
}

variable "volume_throughput" {
  description = "MiB per second of a volume, from 125 (no extra cost) to 1000."
  type        = number
  default     = 125

  validation {
    condition     = var.volume_throughput >= 125 && var.volume_throughput <= 1000 && var.volume_throughput * 4 <= var.volume_iops
    error_message = "A gp3 volume has 125 to 1000 MiB per second, and at most one for four of its operations."
  }
}

variable "backup_service_account" {
  description = "The service account, in the namespace `cloudpaxos`, that may write and read backups."
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

variable "log_days" {
  description = "How long the logs of the Kubernetes API and of the network are kept."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365], var.log_days)
    error_message = "CloudWatch keeps logs for 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180 or 365 days."
  }
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}
