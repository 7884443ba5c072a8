variable "project" {
  description = "The id of the project."
  type        = string
}

variable "region" {
  description = "The region, which has at least three zones."
  type        = string
  default     = "europe-west1"
}

variable "name" {
  description = "The name of the cluster."
  type        = string
  default     = "cloudpaxos"
}

variable "api_cidrs" {
  description = "From which addresses kubectl and the second step come, such as [\"192.0.2.7/32\"]."
  type        = list(string)
}

variable "deletion_protection" {
  description = "Whether the cluster refuses to be destroyed until this is false."
  type        = bool
  default     = true
}
