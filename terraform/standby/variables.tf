# What differs between installations of the standby site.

variable "cluster" {
  description = "Name of the cluster, as in cluster.name."
  type        = string
}

variable "region" {
  type    = string
  default = "eu-west-1"
}

variable "zones" {
  description = "Availability zones that hosts are spread over."
  type        = list(string)
  default     = ["eu-west-1a", "eu-west-1b"]
}

variable "hosts" {
  description = "How many hosts of each role."
  type        = map(number)
  default     = { database = 2, proxy = 2, controller = 1, application = 1 }
}

variable "image" {
  description = "A Debian 12 image."
  type        = string
}

variable "instance_types" {
  type    = map(string)
  default = { database = "r7i.large", proxy = "c7i.large", controller = "t3.small", application = "c7i.large" }
}

variable "data_gigabytes" {
  type    = number
  default = 200
}

variable "package" {
  description = "URL of the stormglass package."
  type        = string
}

variable "database_profile" {
  description = "Instance profile of every host but controllers (module identity)."
  type        = string
}

variable "controller_profile" {
  description = "Instance profile of controllers (module identity)."
  type        = string
}

variable "configuration" {
  description = "Host name to the text of its agent.toml or controller.toml; secrets in it are references."
  type        = map(string)
}
